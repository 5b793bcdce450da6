"""The scripts of `logsluice completion` in real shells: apt-get install zsh fish."""

from __future__ import annotations

import builtins
import shutil
import subprocess

import pytest

from logsluice.cli import COMMANDS, main

LIMIT = 60  # seconds: a moment as a rule
# Prints what TAB offers behind the words; each shell has another way to ask.
BASH = """
source ./script
ask() {{
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
    $(complete -p logsluice | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '%s\\n' "${{COMPREPLY[@]}}"
}}
ask {words}
"""
FISH = "source ./script; complete -C '{line}'"


@pytest.fixture
def script(tmp_path, capsys):
    def script(shell):
        if shutil.which(shell) is None:
            pytest.fail(f"{shell} is missing, in which its completion is tried: apt-get install {shell}", pytrace=False)
        assert main(["completion", shell]) == 0
        (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
        return tmp_path

    return script


def asked(shell, text, folder):
    done = subprocess.run([shell, "-c", text], cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=True)
    return [line.split("\t")[0].strip() for line in done.stdout.splitlines()]


def test_bash(script):
    folder = script("bash")
    assert set(asked("bash", BASH.format(words="logsluice ''"), folder)) >= set(COMMANDS)
    assert asked("bash", BASH.format(words="logsluice ta"), folder) == ["tail"]
    assert {"--follow", "--window"} <= set(asked("bash", BASH.format(words="logsluice tail --"), folder))
    assert "ndjson" in asked("bash", BASH.format(words="logsluice query -o ''"), folder)


def test_fish(script):
    folder = script("fish")
    assert set(asked("fish", FISH.format(line="logsluice "), folder)) >= set(COMMANDS)
    assert asked("fish", FISH.format(line="logsluice ta"), folder) == ["tail"]
    assert {"--follow", "--window"} <= set(asked("fish", FISH.format(line="logsluice tail --"), folder))
    assert "ndjson" in asked("fish", FISH.format(line="logsluice query -o "), folder)


def test_zsh(script):
    folder = script("zsh")
    (folder / "script").rename(folder / "_logsluice")
    # In a terminal of its own, by zsh's own zpty: completion works in an interactive shell alone.
    text = """
zmodload zsh/zpty
zpty shell zsh -f -i
tell() { zpty -w shell "$1" }
tell "PS1='READY> '; fpath=($PWD \\$fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=1000; echo BE'GAN'"
zpty -r shell seen '*BEGAN*'
zpty -w -n shell $'logsluice tai\\t--wind\\t; echo E\"\"ND\\n'
zpty -r shell seen '*END*'
print -r -- "$seen"
zpty -d shell
"""
    done = subprocess.run(
        ["zsh", "-f", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={"PATH": "/bin:/usr/bin", "TERM": "dumb"},
    )
    # It writes the rest of a command, and lists options with what they are.
    assert "logsluice tail" in done.stdout, (done.stdout, done.stderr)
    assert "--window  -- with -f: how long after" in done.stdout


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "shtab":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == "logsluice: completion needs shtab: pip install 'logsluice[cli]'\n"
