# Makes .venv beside the sources and installs MCode into it; sourced by the other scripts. Does nothing when up to date, also
# where it holds further extras already.
# Usage: make_environment EXTRAS, as in `make_environment player,live`.

# library that must be loadable -> Debian package that holds it
LIBRARIES="libGL.so.1:libgl1 libEGL.so.1:libegl1 libglib-2.0.so.0:libglib2.0-0 libxkbcommon.so.0:libxkbcommon0
libdbus-1.so.3:libdbus-1-3 libfontconfig.so.1:libfontconfig1 libpulse.so.0:libpulse0 libxcb-cursor.so.0:libxcb-cursor0
libxcb-icccm.so.4:libxcb-icccm4 libxcb-keysyms.so.1:libxcb-keysyms1 libxcb-shape.so.0:libxcb-shape0
libxcb-image.so.0:libxcb-image0 libxcb-render-util.so.0:libxcb-render-util0 libxcb-xkb.so.1:libxcb-xkb1
libxkbcommon-x11.so.0:libxkbcommon-x11-0"
TORCH="torch==2.13.0"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

say() { printf '%s\n' "$*" >&2; }

install_libraries() {
    [ "$(uname -s)" = Linux ] || return 0
    local known missing="" pair
    known=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true)
    for pair in $LIBRARIES; do
        case $known in *"${pair%%:*} "*) ;; *) missing="$missing ${pair##*:}" ;; esac
    done
    if command -v fc-list >/dev/null 2>&1 && [ -z "$(fc-list 2>/dev/null | head -n 1)" ] || [ ! -d /usr/share/fonts ]; then
        missing="$missing fonts-dejavu-core"
    fi
    [ -n "$missing" ] || return 0
    local root=""
    [ "$(id -u)" = 0 ] || root="sudo -n"
    if command -v apt-get >/dev/null 2>&1 && { [ -z "$root" ] || sudo -n true 2>/dev/null; }; then
        say "installing system libraries:$missing"
        $root apt-get update -qq >/dev/null 2>&1 || true
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive $root apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 ||
            say "could not install$missing; the player's window may not open"
    else
        say "the player's window may need these packages:$missing"
    fi
}

install_torch() {
    "$1" -m pip show -q torch 2>/dev/null && return 0
    if command -v nvidia-smi >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then
        "$1" -m pip install -q "$TORCH"
        return
    fi
    # A processor needs no gigabytes of CUDA: take the CPU build where pip finds one, else PyTorch's own index.
    local plan
    plan=$("$1" -m pip install -q --dry-run --no-deps --report - "$TORCH" 2>/dev/null || true)
    case $plan in
        *+cpu*) "$1" -m pip install -q "$TORCH" ;;
        *) "$1" -m pip install -q --timeout 15 --retries 1 --index-url "$TORCH_CPU_INDEX" "$TORCH" ||
            "$1" -m pip install -q "$TORCH" ;;
    esac
}

make_environment() {
    local extras=$1 python sum version stamp known extra
    python=$(command -v python3 || true)
    [ -n "$python" ] || { say "python3 is not installed"; return 2; }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "MCode needs Python 3.11 or newer"; return 2; }
    sum=$(cksum <pyproject.toml)
    version=$("$python" --version)
    stamp=$(cat .venv/.mcode-stamp 2>/dev/null || true)
    known=${stamp#"$sum "}
    known=${known%" $version"}
    [ "$stamp" = "$sum $known $version" ] || known=""  # of other sources, or of another Python
    stamp=$known
    for extra in ${extras//,/ }; do
        case ,$known, in *",$extra,"*) ;; *) known=${known:+$known,}$extra ;; esac
    done
    if [ "$known" = "$stamp" ]; then return 0; fi
    install_libraries
    [ -x .venv/bin/python ] || "$python" -m venv .venv || { say "python3 has no venv: install python3-venv"; return 2; }
    say "installing into .venv (some minutes the first time)"
    install_torch .venv/bin/python || return
    .venv/bin/python -m pip install -q -e ".[$known]" || return
    printf '%s' "$sum $known $version" >.venv/.mcode-stamp
}
