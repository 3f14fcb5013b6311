# Sourced by `run` and `test`: finds a Python that can build `.venv`, and has install.py build it. The current
# directory is the checkout. Written for old shells and old Pythons, because its job is to say that one is too old.

ensure_environment() {
    # The usual case, and fast: everything is installed and the lock file has not changed since.
    if [ -x .venv/bin/python ] && .venv/bin/python scripts/install.py --check 2>/dev/null; then
        return 0
    fi

    local candidate found="" bare="" version python=""
    for candidate in python3.14 python3.13 python3.12 python3.11 python3 .venv/bin/python; do
        # A name may be there and not work (the shims of a version manager), so each one is asked.
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found="$version"
        elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            # Debian and Ubuntu ship these two modules in a package of their own.
            bare="${bare:-$version}"
        else
            python="$candidate"
            break
        fi
    done

    if [ -z "$python" ]; then
        if [ -n "$bare" ]; then
            echo "Python $bare is here without its venv and ensurepip modules: install them (Debian, Ubuntu: apt install python$bare-venv)." >&2
        elif [ -n "$found" ]; then
            echo "Python 3.11 or newer is needed and the newest one found is $found: install python3.11 or newer with its venv module." >&2
        else
            echo "Python 3.11 or newer is needed and none was found: install python3.11 or newer with its venv module." >&2
        fi
        return 1
    fi
    "$python" scripts/install.py
}
