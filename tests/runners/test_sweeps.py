"""Sweeps as files: a list of commands and a Slurm script, run by the shell as people run them."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.conftest import TINY, Command

SWEEP = ["multi_test", *TINY, "--standard_eval", "--per_label=10", "--quiet"]


def tasks(file: Path) -> list[list[str]]:
    """The words of every command of a list, after the program."""
    return [shlex.split(line)[2:] for line in file.read_text().splitlines() if not line.startswith("#")]


def run(*words: Any, **variables: Any) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "NONISOTROPIC_H"))}
    environment = without | {name: str(value) for name, value in variables.items()}
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, cwd="/", timeout=300)


def program(folder: Path, name: str, text: str) -> None:
    """A program of the shell, in a folder of the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_a_list_run_by_the_shell_leaves_nothing_to_run(digits_root: Command, tmp_path: Path) -> None:
    """In a root, and by files, whose names the shell has to be told with care."""
    root = Command(digits_root.root.rename(digits_root.root.parent / 'it\'s $HOME; a "root"'))
    folder = tmp_path / "a 'folder' & more"
    commands, script = folder / "li st.txt", folder / "sl$urm.sh"
    words = [*SWEEP, "--toggle_mixup"]
    told = root(*words, f"--write_commands={commands}", f"--write_slurm={script}", "--num_workers=1")
    assert told.returncode == 0 and told.stdout.startswith(f"3 commands in {commands}, in an order")
    assert "submits 2 arrays" in told.stdout and told.stderr == ""
    assert not root.where(*words).exists()  # nothing was run
    # The standard model is there already; its test can run beside the other training.
    assert [task[0] for task in tasks(commands)] == ["test", "train", "test"]
    for task in tasks(commands):
        assert "--num_workers=1" in task and "--quiet=True" in task and f"--root_dir={root.root}" in task
    assert "# stage 1 of 2: test, train for those below\n" in commands.read_text()
    assert run("bash", "-n", script).returncode == 0
    done = run("bash", script, SLURM_ARRAY_TASK_ID=2)
    assert done.returncode == 0 and "trained 33 steps" in done.stdout, done.stderr
    assert run("bash", script, SLURM_ARRAY_TASK_ID=4).returncode == 2
    done = run("bash", commands)
    assert done.returncode == 0 and done.stdout.count("| clean ") == 2, done.stderr
    again = root(*words, f"--write_commands={commands}")
    assert again.stdout == "nothing to write: all 2 runs are complete\n"
    children = root.result(*words)["children"]
    assert all("result" in child for child in children)
    assert (root.where(*words) / "leaderboard.csv").is_file()
    root.root.rename(digits_root.root)


def listed(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> Path:
    file = folder / "list.txt"
    assert main([*words, f"--write_commands={file}", f"--root_dir={folder}/root"]) == 0
    capsys.readouterr()
    return file


def test_runs_that_others_build_on_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SWEEP, "--N_adv_eval", "--N_coverage=0.9", "--toggle_N_adv_train", "--N_train_coverage=0.9"]
    file = listed(capsys, tmp_path, *words)
    runners = [task[0] for task in tasks(file)]
    place = {name: [i for i, runner in enumerate(runners) if runner == name] for name in set(runners)}
    assert {name: len(found) for name, found in place.items()} == {
        "compute_threat": 1, "evaluate_threat": 1, "train": 2, "test": 2
    }  # fmt: skip
    assert place["compute_threat"] < place["evaluate_threat"] and max(place["train"]) < max(place["test"])
    (adversarial,) = [i for i in place["train"] if "--N_adv_train" in tasks(file)[i]]
    assert place["evaluate_threat"][0] < adversarial < max(place["test"])
    assert not (tmp_path / "root").exists()


def test_each_line_is_the_run_of_its_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the directories of --dry_run, which come from the descriptions and not from their commands."""
    words = ["multi_train", *TINY, "--toggle_N_aug", "--toggle_adv_train", "--seed=3", "--train_replicate=2"]
    words += ["--adv_train_attack_power_Linf=8/255", "--data_dir=some/folder"]
    file = listed(capsys, tmp_path, *words)
    assert main([*words, "--dry_run", f"--root_dir={tmp_path}/root"]) == 0
    planned = [line.split("|")[3].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    found = []
    for task in tasks(file):
        assert main([*task, "--display_output_location"]) == 0
        found.append(capsys.readouterr().out.strip())
        assert f"--data_dir={Path('some/folder').absolute()}" in task  # the same in any folder
    assert len(planned) == 4 and set(planned) < set(found)
    assert [task[0] for task in tasks(file)].count("compute_threat") == len(found) - 4 == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--write_slurm=a.sh"], "--write_slurm: expected --write_commands=FILE too"),
        (["--write_commands=a\nb"], "--write_commands: expected flags and names of files without line breaks"),
        (["--write_commands=/proc/none/list"], "cannot write /proc/none/list"),
        (["--write_commands=/proc/none/a", "--write_slurm=/proc/./none/a"], "--write_slurm: expected another file"),
    ],
)
def test_mistakes(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["multi_train", *TINY, *words, f"--root_dir={tmp_path}/root"]) in (1, 2)
    assert told in capsys.readouterr().err
    assert main(["train", *TINY, "--write_commands=a"]) == 2


@pytest.fixture
def slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A script with the list that it reads beside it, and a scheduler that writes down what it was asked."""
    commands, script = tmp_path / "list.txt", tmp_path / "slurm.sh"
    words = [*SWEEP, "--toggle_mixup", f"--root_dir={tmp_path}/root", f"--write_commands={commands}"]
    assert main([*words, f"--write_slurm={script}"]) == 0
    program(tmp_path / "bin", "scontrol", f"echo scontrol \"$@\" >> '{tmp_path}/asked'")
    program(tmp_path / "bin", "sbatch", f"echo sbatch \"$@\" >> '{tmp_path}/asked'; wc -l < '{tmp_path}/asked'")
    return script


def path_with(folder: Path) -> str:
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def test_called_by_hand_the_script_submits_stage_after_stage(slurm: Path, tmp_path: Path) -> None:
    done = run("bash", slurm, PATH=path_with(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"sbatch --parsable --array=1-2 {slurm}",
        f"sbatch --parsable --array=3-4 --dependency=afterany:1 {slurm}",
    ]
    assert done.stdout == "tasks 1-2: job 1\ntasks 3-4: job 2\n"
    assert run("bash", slurm, SLURM_JOB_ID=5).returncode == 2  # submitted without its array


def test_a_sweep_of_one_stage_is_one_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["multi_train", *TINY, "--toggle_mixup", f"--write_slurm={tmp_path}/s.sh", f"--root_dir={tmp_path}/root"]
    assert main([*words, f"--write_commands={tmp_path}/list.txt"]) == 0
    assert f"then: sbatch {tmp_path}/s.sh\n" in capsys.readouterr().out
    assert "#SBATCH --array=1-2\n" in (tmp_path / "s.sh").read_text()


@pytest.mark.parametrize(
    ("line", "sent", "code", "requeued"),
    [
        ("exit 0", None, 0, False),
        ("exit 1", None, 1, False),
        ("exit 75", None, 75, True),
        ("trap 'exit 75' USR1; touch up; sleep 9 >/dev/null & wait", signal.SIGUSR1, 75, True),
        ("trap 'exit 1' USR1; touch up; sleep 9 >/dev/null & wait", signal.SIGUSR1, 1, True),  # as torchrun
        (
            "trap 'sleep 0.3; exit 0' USR1; touch up; sleep 9 >/dev/null & wait",
            signal.SIGUSR1,
            0,
            False,
        ),  # finished all the same
        ("trap 'exit 75' TERM; touch up; sleep 9 >/dev/null & wait", signal.SIGTERM, 75, False),  # cancelled
    ],
)
def test_what_goes_back_into_the_queue(
    line: str, sent: int | None, code: int, requeued: bool, slurm: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(f"# a comment\n/bin/false\nbash -c {shlex.quote(line)}\n")
    variables = {**os.environ, "PATH": path_with(tmp_path), "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77"}
    task = subprocess.Popen(["bash", slurm], env=variables, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while sent and not (tmp_path / "up").exists():
        assert task.poll() is None
    if sent:
        task.send_signal(sent)
    assert task.wait(30) == code
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("scontrol requeue 77\n" if requeued else "")


def test_the_code_of_a_run_that_ends_before_the_shell_has_passed_on_the_signal(slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("bash -c \"trap 'exit 75' USR1; touch up; sleep 9 >/dev/null & wait\"\n")
    variables = {**os.environ, "PATH": path_with(tmp_path), "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
    variables["BASH_FUNC_kill%%"] = '() { builtin kill "$@"; code=$?; sleep 0.5; return $code; }'
    task = subprocess.Popen(["bash", slurm], env=variables, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "up").exists():
        assert task.poll() is None
    task.send_signal(signal.SIGUSR1)
    assert task.wait(30) == 75
    assert (tmp_path / "asked").read_text() == "scontrol requeue 77\n"


def test_more_gpus_are_used_by_torchrun(slurm: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "py thon", 'printf "[%s]" "$@"')
    (tmp_path / "list.txt").write_text(f"'{tmp_path}/bin/py thon' 'non isotropic.py' train '--data_dir=a b'\n")
    done = run("bash", slurm, SLURM_ARRAY_TASK_ID=1, SLURM_GPUS_ON_NODE=4)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    shown = "".join(f"[{word}]" for word in [*words, "non isotropic.py", "train", "--data_dir=a b"])
    assert done.stdout == shown
    done = run("bash", slurm, SLURM_ARRAY_TASK_ID=1, SLURM_GPUS_ON_NODE=1)
    assert done.stdout == "[non isotropic.py][train][--data_dir=a b]"


def test_torchrun_is_asked_by_the_signal_that_it_passes_on(slurm: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "python", "trap 'echo TERM; exit 1' TERM; touch up; sleep 9 >/dev/null & wait")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/bin/python nonisotropic.py train\n")
    variables = {**os.environ, "PATH": path_with(tmp_path), "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
    variables["SLURM_GPUS_ON_NODE"] = "2"
    task = subprocess.Popen(["bash", slurm], env=variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "up").exists():
        assert task.poll() is None
    task.send_signal(signal.SIGUSR1)
    assert task.communicate(timeout=30)[0] == "TERM\n" and task.returncode == 1
    assert (tmp_path / "asked").read_text() == "scontrol requeue 77\n"


def test_the_processes_of_torchrun_write_one_list(command: Command, tmp_path: Path) -> None:
    words = ["multi_train", *TINY, "--toggle_mixup", f"--write_commands={tmp_path}/list.txt"]
    done = command(*words, processes=2)
    assert done.returncode == 0 and done.stdout.count("2 commands") == 1
    assert len(tasks(tmp_path / "list.txt")) == 2 and not list(tmp_path.rglob("hparams.json"))
