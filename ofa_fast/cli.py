"""The ``ofa-fast`` command. A subcommand imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from ofa_fast import _cli_compare, _cli_evaluate, _cli_export, _cli_info, _cli_init, _cli_train, _cli_vectors

# A module of COMMANDS declares its arguments in ``register`` and does its work in ``run``.
COMMANDS = (_cli_vectors, _cli_init, _cli_train, _cli_evaluate, _cli_compare, _cli_export, _cli_info)

# What bad input raises, in ofa_fast and in the libraries that read the user's files.
INPUT_ERRORS = (ValueError, TypeError, IndexError, OSError, UnicodeError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"ofa-fast: error: {message} (see: {self.prog} --help)\n")


class _Arguments(argparse.Namespace):
    """Options, and beside them (``vars`` does not list it) the command line as a shell would take it."""

    __slots__ = ("command",)


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    args = _parser().parse_args(argv, _Arguments())
    args.command = shlex.join(["ofa-fast", *(sys.argv[1:] if argv is None else argv)])
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too
    try:
        args.run(args)
    except KeyboardInterrupt:
        return _fail("interrupted; no unfinished result was left behind", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except INPUT_ERRORS as error:
        if args.debug:
            raise
        return _fail(f"error: {' '.join(str(error).split()) or type(error).__name__}", 2)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"ofa-fast: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ofa-fast", description="Move pretrained language models to new vocabularies and languages.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def subparser(name, run, summary, example, among=commands):
        sub = among.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  ofa-fast {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    for module in COMMANDS:
        module.register(commands, subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
