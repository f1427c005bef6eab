"""Completion in a shell: `unmask --completion bash` prints a script, which asks `unmask --complete` at every Tab.

What may follow depends on what stands before (`--method mdpo` brings `--method.steps`), so it is the settings reader
that answers, for the words as they stand. Files of the user's that they name are never imported for it.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from unmask.denoisers.directories import EMBEDDED, embedded_names
from unmask.errors import UserError
from unmask.settings.reader import leaves
from unmask.settings.recipe_files import recipe_names
from unmask.validation import did_you_mean

# Bash splits words at ":" and "=" and wants what follows the last of them; zsh and fish want whole words. Where nothing
# is offered, each completes the names of files.
_BASH = """_unmask() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    COMPREPLY=()
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(unmask --complete "$line" 2>/dev/null)
    local typed="${line##*[[:space:]]}"
    if [[ "$typed" == *[:=]* && "$COMP_WORDBREAKS" == *[:=]* ]]; then
        local kept="${typed%"${typed##*[:=]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
}
complete -o default -F _unmask unmask
"""
_ZSH = """#compdef unmask
_unmask() {
    local -a offered
    offered=("${(@f)$(unmask --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${offered[1]}" ]]; then compadd -Q -- "${offered[@]}"; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _unmask unmask
"""
_FISH = """function __unmask_complete
    set -l offered (unmask --complete (commandline --cut-at-cursor | string collect) 2>/dev/null)
    if test (count $offered) -gt 0
        printf '%s\\n' $offered
    else
        __fish_complete_path (commandline --current-token)
    end
end
complete --command unmask --no-files --arguments '(__unmask_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

Parse = Callable[..., tuple[Any, Namespace]]


def script(words: list[str]) -> str:
    """The script for a shell. Raises UserError for a shell that is none of the three."""
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise UserError(f"--completion is {' '.join(words)!r}{did_you_mean(' '.join(words), SCRIPTS)}")
    return SCRIPTS[words[0]]


def offered(line: str, commands: dict[str, Any], parse: Parse) -> list[str]:
    """What may stand for the last word of a command line, which begins with the name of the program."""
    words = _words(line)[1:]
    if not words:
        return []
    if len(words) == 1:
        return _beginning(words[0], [*commands, "--help", "--version", "--completion"])
    name, *given, typed = words
    if name == "--completion":
        return _beginning(typed, SCRIPTS)
    if name == "--version":
        return _beginning(typed, ["--verbose"])
    if name not in commands:
        return []
    command = commands[name]
    values = _values(name, command, given, parse)
    switches = [switch for switch, _ in command.switches]
    if "=" in typed:
        flag = typed.partition("=")[0]
        return _beginning(typed, [f"{flag}={value}" for value in values.get(flag, [])])
    if given and given[-1] in values and given[-1] not in switches:
        return _beginning(typed, values[given[-1]])
    places = [value for argument, _ in command.arguments if argument in values for value in values[argument]]
    return _beginning(typed, [*places, *(word for word in values if word.startswith("--")), "--help"])


def _words(line: str) -> list[str]:
    """The words of a line, the last one as far as it is typed: empty behind a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # within quotation marks
        return []
    return [*words, ""] if not line or line[-1].isspace() else words


def _beginning(typed: str, words: Any) -> list[str]:
    return [word for word in words if word.startswith(typed)]


def _values(name: str, command: Any, given: list[str], parse: Parse) -> dict[str, list[str]]:
    """The values that every flag of the command may have, as far as they are few; of others, none."""
    settings = _settings(name, command, given, parse)
    values = {leaf.flag: list(leaf.choices) for leaf in leaves(settings)}
    own: dict[str, list[str]] = {flag: [] for flag, _ in (*command.arguments, *command.switches)}
    if "--model" in values:
        own["--model"] = [EMBEDDED + model for model in embedded_names()]
    recipes = recipe_names(name if name == "pretrain" else "train")
    own |= {flag: recipes for flag in own if flag.strip("-") == "recipe"}
    if name == "methods":
        from unmask.methods import METHODS

        own["name"] = list(METHODS)
    return values | own


def _settings(name: str, command: Any, given: list[str], parse: Parse) -> Any:
    """The settings of the words before, of which a word that could name a file of the user's is left out."""
    pairs = [pair for pair in pairwise(given) if pair[0].startswith("--") and not pair[1].startswith("--")]
    known = [word for pair in pairs if not set(":/.") & set(pair[1]) for word in pair]
    try:
        return parse(name, command, known, for_help=True)[0]
    except UserError:
        return command.settings()
