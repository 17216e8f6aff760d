"""Completion: print what makes a shell complete jobs, settings, options of groups and values."""

import sys

from transloom.jobs.cli import usage
from transloom.jobs.command_table import COMMANDS
from transloom.jobs.config.groups import groups
from transloom.jobs.config.reference import all_settings
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import RUNS_FOLDER

BASH = r"""# transloom: completion for bash. In ~/.bashrc: eval "$(transloom completion bash)"
_transloom() {
    local jobs="@JOBS@" keys="@KEYS@" values=""
    local before="${COMP_LINE:0:COMP_POINT}"
    local word="${before##*[[:space:]]}"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$jobs help --help --version" -- "$word")
        return
    fi
    if [[ $word == *=* ]]; then
        case "${word%%=*}" in
@CASES@
        resume | train.initial) values="$(_transloom_runs)" ;;
        *)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "${word#*=}")
            return
            ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "${word#*=}")
        [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/${word%%=*}=}")
        return
    fi
    if [[ ${COMP_WORDS[1]} == help ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$jobs ${keys//= / }" -- "$word")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$keys" -- "$word")
    if ((${#COMPREPLY[@]})); then compopt -o nospace; fi
    case "${COMP_WORDS[1]}" in
    @NAMERS@) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$(_transloom_runs)" -- "$word") ;;
    completion) mapfile -t COMPREPLY < <(compgen -W "bash zsh" -- "$word") ;;
    esac
    if ((${#COMPREPLY[@]} == 0)); then
        compopt +o nospace -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
_transloom_runs() {
    local folder
    for folder in outputs/@RUNS@/*/; do
        if [[ -e ${folder}config.yaml ]]; then folder="${folder%/}" && echo "${folder##*/}"; fi
    done
}
complete -F _transloom transloom
"""

ZSH = r"""#compdef transloom
# transloom: completion for zsh. In ~/.zshrc, after compinit: eval "$(transloom completion zsh)"
_transloom() {
    local -a jobs=(@JOBS@) keys=(@KEYS@) values=() runs=(outputs/@RUNS@/*/config.yaml(N:h:t))
    if ((CURRENT == 2)); then
        compadd -- $jobs help --help --version
    elif [[ $PREFIX == *=* ]]; then
        local key=${PREFIX%%=*}
        compset -P 1 '*='
        case $key in
@CASES@
        resume | train.initial) values=($runs) ;;
        *)
            _files
            return
            ;;
        esac
        compadd -- ${=values}
    elif [[ $words[2] == help ]]; then
        compadd -- $jobs ${keys%=}
    elif [[ $words[2] == completion ]]; then
        compadd -- bash zsh
    else
        compadd -S '' -- $keys
        case $words[2] in
        @NAMERS@) compadd -- $runs ;;
        esac
        _files
    fi
}
compdef _transloom transloom
"""
SHELLS = {"bash": BASH, "zsh": ZSH}


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(usage("completion"))
    sys.stdout.write(_filled(SHELLS[argv[0]]))
    return 0


def _filled(script: str) -> str:
    """The script with the names of this version in place of the marks."""
    choices = {setting.key: setting.choices for setting in all_settings() if setting.choices}
    values = {**{key: list(dict.fromkeys(own)) for key, own in choices.items()}, **groups()}
    for setting in all_settings():  # a key may have other values for other tasks
        if setting.choices and setting.key not in groups():
            values[setting.key] = list(dict.fromkeys([*values[setting.key], *setting.choices]))
    keys = dict.fromkeys([*groups(), *(setting.key for setting in all_settings())])
    cases = [f'        {key}) values="{" ".join(own)}" ;;' for key, own in values.items()]
    takers = [name for name, command in COMMANDS.items() if command.arguments.startswith(("<run", "[run", "[<run"))]
    marks = {
        "JOBS": " ".join(COMMANDS),
        "KEYS": " ".join(f"{key}=" for key in keys),
        "CASES": "\n".join(cases),
        "NAMERS": " | ".join(takers),
        "RUNS": RUNS_FOLDER,
    }
    for mark, text in marks.items():
        script = script.replace(f"@{mark}@", text)
    return script
