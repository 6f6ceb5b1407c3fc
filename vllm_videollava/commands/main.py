"""The command `vllm-videollava`: parses the command line and runs one of the commands."""

import argparse
import difflib
import sys
from importlib.metadata import version
from types import ModuleType

from vllm_videollava.commands import check, convert, demo, embed, serve, vllm

PROG = "vllm-videollava"
COMMANDS: dict[str, ModuleType] = {
    "serve": serve,
    "demo": demo,
    "check": check,
    "convert": convert,
    "embed": embed,
    "vllm": vllm,
}


def main() -> None:
    parser = _make_parser()
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        parser.error(_explain(arguments[0]))
    args, handed_on = parser.parse_known_args(arguments)
    command = COMMANDS[args.command]
    if handed_on and not command.HANDS_ON:
        parser.error(f"unrecognized arguments for {args.command}: {' '.join(handed_on)}")
    args.handed_on = handed_on
    sys.exit(command.run(args))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="Run Video-LLaVA in vLLM.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROG} {version(PROG)}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=f"Example: {command.EXAMPLE}",
            allow_abbrev=False,
            # vLLM's commands have a --help of their own.
            add_help=not command.HANDS_ON,
        )
        command.add_arguments(subparser)
    return parser


def _explain(mistyped: str) -> str:
    nearest = difflib.get_close_matches(mistyped, COMMANDS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the commands are {', '.join(COMMANDS)}."
    return f"there is no command {mistyped!r}; {hint}"


if __name__ == "__main__":
    main()
