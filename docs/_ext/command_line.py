"""The directive `zoo-commands`: every command and option of `zoo`, read from its parsers when the site is built."""

import argparse
import textwrap

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zoo import cli


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    _, parsers = cli._parsers([command])
    return parsers[command]


def _words(action: argparse.Action) -> str:
    """Return the option as it is typed, with its value."""
    value = ""
    if action.nargs != 0:
        metavar = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
        metavar = metavar[0] if isinstance(metavar, tuple) else metavar
        value = metavar or action.dest.upper()
        if action.nargs in ("*", "+"):
            value += " …"
    if not action.option_strings:
        return value
    return ", ".join(action.option_strings) + (f" {value}" if value else "")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    return formatter._expand_help(action).replace("\n", " ") if action.help else ""


def _escape(text: str) -> str:
    for mark in "\\*_[]<>|$":
        text = text.replace(mark, f"\\{mark}")
    return text


def markdown(command: str, text: str) -> list[str]:
    """Return the section of a command as lines of Markdown."""
    parser = parser_of(command)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    usage_lines = textwrap.wrap(usage, 88, subsequent_indent="    ", break_on_hyphens=False)
    lines = [f"## zoo {command}", "", _escape(text), "", "```text", *usage_lines, "```", ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        actions = [action for action in actions if action.dest != "help"]
        if not actions:
            continue
        if group.title and group.title not in ("options", "positional arguments"):
            lines += [f"**{_escape(group.title)}**", ""]
        for action in actions:
            lines += [f"`` {_words(action)} ``", f": {_escape(_help(parser, action)) or '–'}", ""]
    return lines


class ZooCommands(SphinxDirective):
    """Insert one section for each command."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for command, (_, text) in cli.COMMANDS.items():
            lines += markdown(command, text)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("zoo-commands", ZooCommands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
