"""The parser of the command `fastnmf`: its commands, and which arguments each has."""

from __future__ import annotations

from .._version import __version__
from .arguments import fit, machine, models, selection
from .arguments.shared import add_help
from .arguments.texts import ABOUT, COMMANDS, EXAMPLES, MATRICES, STATUS, USAGE
from .usage import Parser

_ARGUMENTS = {
    "fit": fit.add_fit,
    "encode": models.add_encode,
    "decode": models.add_decode,
    "report": models.add_report,
    "show": models.add_show,
    "choose": selection.add_choose,
    "stability": selection.add_stability,
    "info": machine.add_info,
    "demo": machine.add_demo,
    "completion": machine.add_completion,
}


def parser_of() -> Parser:
    """The parser of the whole command line; `command` of its result is the name of the command."""
    epilog = f"{EXAMPLES['']}\n\n{MATRICES}\n\n{STATUS}\n\n`fastnmf COMMAND --help` lists options."
    parser = Parser(
        prog="fastnmf", usage="fastnmf COMMAND [options]", description=ABOUT, epilog=epilog
    )
    parser.divided = True
    listed = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", prog="fastnmf"
    )
    other = parser.group("options")
    add_help(other)
    other("--version", action="version", version=f"fastnmf {__version__}", help="show the version")
    for name, line in COMMANDS.items():
        described = f"{line[0].upper()}{line[1:]}."
        epilog, usage = EXAMPLES[name], f"fastnmf {name} {USAGE[name]}"
        command = listed.add_parser(
            name, help=line, description=described, epilog=epilog, usage=usage
        )
        _ARGUMENTS[name](command)
    return parser
