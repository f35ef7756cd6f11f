"""Command line: parse the arguments, execute the runner that they name, and return an exit code.

Exit codes: 0 success, 1 failure, 2 mistake in the command line, 75 stopped by a signal (SIGTERM, SIGUSR1),
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cli.config_files import configured
from cli.flags import flags_of, groups_of, replicates, without_effect
from cli.parsing import Parser, make_parser
from cli.published_flags import translated
from cli.runner_registry import RUNNERS, desc_class
from cli.shared_args import SharedArgs
from foundations.errors import NonisotropicError, UsageError, nearest
from foundations.input_hparams import DatasetHparams, ModelHparams
from foundations.lazy import load_object
from foundations.program import COMMAND as PROGRAM
from foundations.program import VERSION
from foundations.signals import Interrupted

PRIMARY_SPEAKS_FIRST = 20  # seconds that the other processes wait before they print a usage error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; an error becomes one line on stderr and an exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `... 2>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        return dispatch(arguments)
    except (NonisotropicError, Interrupted) as error:
        if _is_debugging(arguments):
            raise
        _tell(error, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _tell(None, "interrupted; the same command goes on from what is complete")
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _is_debugging(arguments):
            raise
        text = " ".join(str(error).split()) or "no message"
        if text.startswith("DataLoader worker"):  # torch raises it wherever the main process is
            _tell(error, f"{text} if it was for lack of memory, use a smaller --num_workers or --batch_size")
            return 1
        if isinstance(error, MemoryError) or "can't allocate memory" in text:  # the second is torch's, on a CPU
            _tell(
                error, f"the memory of this machine does not suffice ({text}); take smaller images, batches or models"
            )
            return 1
        _tell(error, f"unexpected {type(error).__name__}: {text} (add --debug for the traceback)")
        return 1


def dispatch(arguments: list[str]) -> int:
    """Find the runner that the first argument names, and run it with the remaining arguments."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} RUNNER --dataset_name=NAME [--flag=value ...]\n\n{listing()}")
        print(f"\n{PROGRAM} RUNNER --help shows the flags of a runner, {PROGRAM} --version the version.")
        return 0
    if arguments == ["--version"]:
        print(f"nonisotropic {VERSION}")
        return 0
    if not arguments:
        raise UsageError(f"no runner; expected {PROGRAM} RUNNER --flag=value ..., with RUNNER one of\n{listing()}")
    if arguments[0] not in RUNNERS:
        raise UsageError(
            f"unknown runner {arguments[0]!a}{nearest(arguments[0], list(RUNNERS))}; expected {PROGRAM} RUNNER "
            f"--flag=value ..., with RUNNER one of {', '.join(RUNNERS)}"
        )
    return run(arguments[0], arguments[1:])


def listing() -> str:
    """A list of the runners, one line each."""
    width = max(map(len, RUNNERS))
    return "\n".join(f"  {name.ljust(width)}  {desc_class(name).purpose}" for name in RUNNERS)


def run(runner: str, arguments: list[str]) -> int:
    """Parse the flags, describe the run, and execute it unless only its directory or its plan is asked for."""
    from foundations.digests import forget
    from foundations.environment import below_root

    forget()
    read = configured(runner, arguments)
    arguments, notes = translated(arguments, flags_of(runner).__contains__)
    arguments = [*read.words, *arguments]
    values = runner_parser(runner, arguments).parse(arguments, bool(desc_class(runner).takes))
    values["files"] = values.get("files") or read.files
    shared = SharedArgs.of(values)
    with below_root(shared.root_dir), _without_display():
        idle = without_effect(runner, values, arguments[len(read.words) :])
        return _run(runner, values, shared, [*read.notes, *notes], idle)


@contextmanager
def _without_display() -> Iterator[None]:
    """A block in which matplotlib can be imported: a notebook names a backend that may not be installed here."""
    before = os.environ.get("MPLBACKEND")
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        os.environ.pop("MPLBACKEND", None)
        if before is not None:
            os.environ["MPLBACKEND"] = before


def _run(runner: str, values: dict[str, Any], shared: SharedArgs, notes: Sequence[str], idle: str) -> int:
    from foundations.arithmetic import fix_workspaces
    from foundations.environment import keep_memory, let_threads_sleep, make_environment, resolve_root
    from foundations.run_directory import RunDirectory
    from runners.completion import finished_result, tell

    for group in groups_of(runner):
        group.of(values)  # raises UsageError for a value out of range
    desc = desc_class(runner).from_flags(values)
    root = resolve_root(shared.root_dir)
    if shared.display_output_location:
        if _rank() == "0":
            print(desc.directory(root))
        return 0
    if told := desc.instead(values, root, shared.beside()):
        if _rank() == "0":
            print(told)
        return 0
    if idle and _rank() == "0" and not shared.quiet:  # of a complete run too: it may not be the one that was meant
        print(f"note: {idle}", file=sys.stderr)
    if os.environ.get("WORLD_SIZE", "1") == "1" and (result := finished_result(desc, root)):
        if not shared.quiet:
            print("complete already", file=sys.stderr)
        RunDirectory(desc.directory(root)).tidy_after_a_kill()
        return tell(desc, result, root)
    let_threads_sleep()  # before torch is imported
    fix_workspaces()
    keep_memory()
    environment = make_environment(
        shared.root_dir,
        values.get("data_dir", ""),
        shared.device,
        shared.quiet,
        shared.num_workers,
        shared.hang_minutes,
    )
    for note in notes:
        environment.log(f"note: {note}")
    with environment.stop.listening(), environment.process_group():
        result = load_object(desc.runner_class)(desc, environment).execute()
    return tell(desc, result, root) if environment.is_primary else 0


def runner_parser(runner: str, arguments: list[str]) -> Parser:
    """The parser of a runner, with the defaults for the data set and model that the arguments name."""
    described, program = desc_class(runner), f"{PROGRAM} {runner}"
    of_others = replicates() - described.replicate_flags()
    groups, defaults = groups_of(runner), first_look(arguments)
    if "protocol" in flags_of(runner):
        defaults |= fixed_by_protocol(arguments)
    return make_parser(program, described.purpose, groups, defaults, of_others, takes=described.takes)


def fixed_by_protocol(arguments: list[str]) -> dict[str, Any]:
    """The flags that --protocol sets for the data set, which the arguments or the run of --train_dir name."""
    from runners.commands import protocol_flags
    from runners.train.desc import stored_model

    parser = Parser(add_help=False)
    for flag in ("--protocol", "--dataset_name", "--train_dir", "--root_dir"):
        parser.add_argument(flag, default="")
    named = parser.parse_known_args(arguments)[0]
    if not named.protocol:
        return {}
    stored = stored_model(named.train_dir, named.root_dir) if named.train_dir else None
    return protocol_flags(named.protocol, named.dataset_name or (stored.dataset_name if stored else ""))


def first_look(arguments: list[str]) -> dict[str, Any]:
    """The defaults implied by the data set and model, or by the run that --train_dir names."""
    from models.sources import written_name
    from runners.commands import named_defaults
    from runners.train.desc import data_of, stored_model

    # No --help here: the full parser, which uses these defaults, shows the help.
    parser = make_parser(PROGRAM, PROGRAM, [DatasetHparams, ModelHparams], {}, add_help=False)
    for flag in ("--train_dir", "--root_dir"):
        parser.add_argument(flag, default="")
    values = vars(parser.parse_known_args(arguments)[0])
    if values["train_dir"]:
        stored = stored_model(values["train_dir"], values["root_dir"])
        hashed = stored.content["hashed"]
        return named_defaults({**hashed["dataset"], **hashed["model"]}) | data_of(stored)
    return named_defaults({**values, "model_name": written_name(values["model_name"], values["model_source"])})


def _rank() -> str:
    return os.environ.get("RANK", "0")


def _is_debugging(arguments: list[str]) -> bool:
    return "--debug" in arguments


def _tell(error: BaseException | None, message: str) -> None:
    """Print one line on stderr.

    All processes detect a mistake in the command line, but only the primary should print it. The others wait first,
    since torchrun usually stops them after the primary has failed, and print only if they are still running.
    """
    rank = _rank()
    if rank != "0" and isinstance(error, Interrupted):
        return
    if rank != "0" and isinstance(error, UsageError):
        time.sleep(PRIMARY_SPEAKS_FIRST)
    prefix = "nonisotropic" if rank == "0" else f"nonisotropic [rank {rank}]"
    print(f"{prefix}: {message}", file=sys.stderr, flush=True)
