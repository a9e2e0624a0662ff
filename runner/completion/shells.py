"""Completion for bash, zsh and fish, in the place of Hydra's own, which knows no methods."""

from __future__ import annotations

import os
import re
import shlex
import sys
from functools import partial
from typing import Any, ClassVar

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runner.config import settings_of

_ASK = "{python} -P -m runner -sc query={shell} 2>/dev/null"  # -P: nothing of the folder one is in is run
_BASH = """\
_runner() {{
    local found
    COMPREPLY=()
    while IFS= read -r found; do COMPREPLY+=("$found"); done < <(
        COMP_LINE="${{COMP_LINE:0:COMP_POINT}}" COMP_WORDBREAKS="$COMP_WORDBREAKS" {ask}
    )
}}
complete -o nospace -F _runner runner"""
_ZSH = """\
_runner() {{
    local -a found
    found=(${{(f)"$(COMP_LINE="${{(j: :)words[1,CURRENT-1]}} $PREFIX" {ask})"}})
    compadd -S '' -- ${{(M)found:#*[=./]}}
    compadd -- ${{found:#*[=./]}}
}}
compdef _runner runner"""
_FISH = """\
function __fish_runner
    set -lx COMP_LINE (commandline -cp)
    {ask}
end
complete -c runner -f -a '(__fish_runner)'"""


class _Shell(CompletionPlugin):
    """What Hydra asks of a shell.

    Attributes:
        shell: its name.
        script: what it runs to complete our command; {ask} asks us.
        undo: what takes that back.
        use: how both are handed to it.
    """

    shell: ClassVar[str]
    script: ClassVar[str]
    undo: ClassVar[str]
    use: ClassVar[str] = 'eval "$({{}} -sc {command}={shell})"'

    @classmethod
    def provides(cls) -> str:
        """The name of the shell."""
        return cls.shell

    @classmethod
    def help(cls, command: str) -> str:
        """How to "install" or "uninstall" completion; {} stands for our command."""
        return cls.use.format(command=command, shell=cls.shell)

    def install(self) -> None:
        """Prints the script."""
        ask = _ASK.format(python=shlex.quote(sys.executable), shell=self.shell)
        print(self.script.format(ask=ask))

    def uninstall(self) -> None:
        """Prints what takes it back."""
        print(self.undo)

    def query(self, config_name: str | None) -> None:
        """Prints what the last word of COMP_LINE, a command line up to the cursor, can become."""
        try:
            word, found = _found(self.config_loader, config_name, os.environ["COMP_LINE"])
        except Exception:  # whoever presses TAB is in the middle of a line, where nothing can be told
            return
        sys.stdout.writelines(f"{self.inserted(one, word)}\n" for one in found)

    def inserted(self, found: str, word: str) -> str:
        """What the shell is given for a word that the one being typed can become."""
        return found


class Bash(_Shell):
    """Completion for bash."""

    shell, script, undo = "bash", _BASH, "complete -r runner\nunset -f _runner"

    def inserted(self, found: str, word: str) -> str:
        """The rest from where bash begins a word, as one writes it there, with a blank if it is complete."""
        breaks = [word.rfind(sign) for sign in "=:@" if sign in os.environ.get("COMP_WORDBREAKS", "")]
        rest = found[max(breaks, default=-1) + 1 :]
        text = re.sub(r"([^\w./@:%+,=~-])", r"\\\1", rest, flags=re.ASCII)
        return text if found.endswith(("=", ".", "/")) else f"{text} "


class Zsh(_Shell):
    """Completion for zsh."""

    shell, script, undo = "zsh", _ZSH, "compdef -d runner\nunfunction _runner"


class Fish(_Shell):
    """Completion for fish."""

    shell, script, undo = "fish", _FISH, "complete -e -c runner\nfunctions -e __fish_runner"
    use = "{{}} -sc {command}={shell} | source"


def register() -> None:
    """Puts these shells in the place of Hydra's, which allows one of each."""
    Plugins.instance().plugin_type_to_subclass_list[CompletionPlugin] = [Bash, Zsh, Fish]


def _found(loader: ConfigLoader, config_name: str | None, line: str) -> tuple[str, list[str]]:
    """The last word of a line, and what it can become.

    Raises:
        ValueError: a quote is open.
        Exception: whatever else is wrong with the line.
    """
    from runner.completion import words  # here: only who presses TAB needs it

    *before, word = shlex.split(f"{line}_")
    word = word.removesuffix("_")
    groups: dict[str, words.Words] = {
        name: words.recipes if name == "recipe" else loader.get_group_options(name, ObjectType.CONFIG)
        for name in loader.list_groups("")
        if name != "hydra"
    }
    if "=" in word and word.partition("=")[0] in groups:
        return word, words.completions(word, groups)
    config = _composed(loader, config_name, [one for one in before[1:] if "=" in one])
    tree: Any = OmegaConf.to_container(config, resolve=False)
    return word, words.completions(word, words.vocabulary(tree, groups, partial(settings_of, config)))


def _composed(loader: ConfigLoader, config_name: str | None, overrides: list[str]) -> DictConfig:
    """The configuration that overrides make; that of none, without a recipe, if they are wrong."""
    try:
        return loader.load_configuration(config_name, [*map(_first, overrides)], RunMode.RUN)
    except Exception:  # whoever runs it is told
        return loader.load_configuration(config_name, ["~recipe"], RunMode.RUN)


def _first(text: str) -> str:
    """An override with the first of its values, if it has several."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
