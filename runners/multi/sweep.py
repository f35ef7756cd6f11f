"""A sweep as files: a list of the commands of its runs, and a Slurm script that runs them as arrays."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundations.desc import Desc
from foundations.errors import UsageError
from foundations.files import write_text
from foundations.hparam_fields import format_value
from foundations.program import CHECKOUT, COMMAND, FROM_WHEEL
from runners.checks import file_to_write
from runners.commands import words_of
from runners.completion import finished_result

LIST_IS_READ = "grep -v '^#' "  # lines that are no comments are tasks, by their numbers from 1


def write_sweep(desc: Any, root: Path, commands: str, script: str, beside: dict[str, Any]) -> str:
    """Write the list, and the Slurm script if one is named; returns what to do with them.

    beside   flags of the command that describe no run, such as --device: every line gets them
    """
    if not commands:
        raise UsageError("--write_slurm: expected --write_commands=FILE too, the list that the script reads")
    stages = stages_of(desc, root)
    count = len(desc.children)
    if not stages:
        return f"nothing to write: all {count} runs are complete"
    asked = {"write_commands": commands, "write_slurm": script}
    files = [file_to_write(flag, _one_line(name)).absolute() for flag, name in asked.items() if name]
    if script and os.path.realpath(files[0]) == os.path.realpath(files[1]):
        raise UsageError(f"--write_slurm: expected another file than --write_commands, got {script} for both")
    write_text(files[0], _list(desc, root, stages, beside))
    told = f"{sum(map(len, stages))} commands in {files[0]}, in an order in which `bash` can run them"
    if script:
        write_text(files[1], _script(desc, stages, *files))
        told += f"\nedit the lines #SBATCH of {files[1]}, then: {_how_to_submit(stages, files[1])}"
    return f"{told}\nafterwards, for the table: the same command without --write_commands"


def stages_of(desc: Any, root: Path) -> list[list[Desc]]:
    """The runs of a sweep that are left, and those that they build on; each needs only those of stages before."""
    depths: dict[Path, int] = {}
    runs: dict[Path, Desc] = {}

    def depth(run: Desc) -> int:
        directory = run.directory(root)
        if directory not in depths:
            depths[directory] = max((1 + depth(below) for below in _left(run.needed_runs().values(), root)), default=0)
            runs[directory] = run
        return depths[directory]

    for child in _left(desc.children, root):
        depth(child)
    return [
        [run for directory, run in runs.items() if depths[directory] == number]
        for number in range(max(depths.values(), default=-1) + 1)
    ]


def _left(runs: Any, root: Path) -> Iterator[Desc]:
    """Those runs that a command makes and that are not complete. What is given by its directory, or published, is."""
    for run in runs:
        if isinstance(run, Desc) and run.runner_class and finished_result(run, root) is None:
            yield run


def _list(desc: Any, root: Path, stages: list[list[Desc]], beside: dict[str, Any]) -> str:
    """One line of the shell for each run, with comments that begin with #."""
    lines = [f"# What is left of {desc.runner}, a run a line, for `bash`. Those of one stage may run side by side."]
    for number, stage in enumerate(stages, start=1):
        names = ", ".join(dict.fromkeys(run.runner for run in stage))
        lines.append(f"# stage {number} of {len(stages)}: {names}{' for those below' if number < len(stages) else ''}")
        lines += [_line(run, root, beside) for run in stage]
    return "".join(f"{line}\n" for line in [*lines, "# then, for the table:", f"# {_line(desc, root, beside)}"])


def _line(desc: Desc, root: Path, beside: dict[str, Any]) -> str:
    """The command of a run, which means the same in any folder."""
    program = ["-m", COMMAND] if FROM_WHEEL else [str(CHECKOUT / "nonisotropic.py")]
    more = [f"--{name}={format_value(value)}" for name, value in beside.items()]
    words = [sys.executable, *program, *words_of(desc, os.path.abspath), *more, f"--root_dir={root}"]
    return _one_line(" ".join(map(shlex.quote, words)))


def _one_line(text: str) -> str:
    if "\n" in text:
        raise UsageError(f"--write_commands: expected flags and names of files without line breaks, got {text!r}")
    return text


def _ranges(stages: list[list[Desc]]) -> list[str]:
    """The numbers of the tasks of each stage, as --array takes them."""
    ranges, first = [], 1
    for stage in stages:
        ranges.append(f"{first}-{first + len(stage) - 1}")
        first += len(stage)
    return ranges


def _how_to_submit(stages: list[list[Desc]], script: Path) -> str:
    path = shlex.quote(str(script))
    if len(stages) == 1:
        return f"sbatch {path}"
    return f"bash {path}  # submits {len(stages)} arrays, each to begin when the one before is done"


def _script(desc: Any, stages: list[list[Desc]], commands: Path, script: Path) -> str:
    ranges = _ranges(stages)
    array = f"#SBATCH --array={ranges[0]}\n" if len(stages) == 1 else ""
    return SCRIPT.format(
        name=desc.runner,
        array=array,
        ranges=" ".join(ranges),
        commands=shlex.quote(str(commands)),
        script=shlex.quote(str(script)),
        read=LIST_IS_READ,
        submit=_how_to_submit(stages, script),
    )


# The shell alone gets the signal (B:), and passes it on: torchrun would not, and turns exit code 75 into 1.
SCRIPT = r"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --mem=16G
#SBATCH --output=slurm-%A_%a.out
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
{array}
# A task runs one command of the list; edit the lines above, then: {submit}
# More GPUs: each command runs below torchrun, with a process for each GPU of the task.
# 300 seconds before its time ends, a task writes a checkpoint and goes back into the queue.
list={commands}
script={script}

if [ -z "$SLURM_ARRAY_TASK_ID" ]; then
    if [ -n "$SLURM_JOB_ID" ]; then
        echo "$script: expected SLURM_ARRAY_TASK_ID; its first lines say how to submit it" >&2
        exit 2
    fi
    before=
    for tasks in {ranges}; do
        answer=$(sbatch --parsable --array="$tasks" ${{before:+--dependency=afterany:$before}} "$script") || exit
        before=${{answer%%;*}}
        echo "tasks $tasks: job $before"
    done
    exit
fi

line=$({read}"$list" | sed -n "${{SLURM_ARRAY_TASK_ID}}p")
if [ -z "$line" ]; then
    echo "$list: no command $SLURM_ARRAY_TASK_ID" >&2
    exit 2
fi
eval "words=($line)"
pass_on=USR1
gpus=${{SLURM_GPUS_ON_NODE:-1}}
if [ "$gpus" -gt 1 ]; then
    pass_on=TERM  # torchrun dies of USR1
    words=("${{words[0]}}" -m torch.distributed.run --standalone --nproc_per_node="$gpus" "${{words[@]:1}}")
fi

asked=
trap 'asked=USR1; kill "-$pass_on" "$run" 2>/dev/null' USR1
trap 'asked=TERM; kill -TERM "$run" 2>/dev/null' TERM
"${{words[@]}}" &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do  # a signal ended `wait`, not the run
    wait "$run"
done
wait "$run"  # the run's own code, which bash keeps: a signal may have ended the last `wait` just before the run ended
code=$?

if [ "$code" -ne 0 ] && [ "$asked" != TERM ] && {{ [ "$code" -eq 75 ] || [ "$asked" = USR1 ]; }}; then
    [ -n "$SLURM_JOB_ID" ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
