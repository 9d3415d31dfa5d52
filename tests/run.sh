#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Run all tests: sh tests/run.sh [PYTEST ARGUMENT]...
#
# Root on a machine with apt-get gets what is missing installed; anyone else gets told.  The
# virtual environment and CRIU are kept outside the checkout, in $SRUN_CR_TEST_CACHE (default:
# /var/cache/srun_cr-tests for root, as ordinary users run tests from there too and cannot enter
# /root; else srun_cr-tests in $XDG_CACHE_HOME or ~/.cache).  $PYTHON is the interpreter to test
# with.  SRUN_CR_TEST_LONG=0 shortens the random rounds of checkpoints.  The last line is pytest's;
# the exit status is that of the first that failed.

set -u
umask 022
cd "$(dirname "$0")/.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
export PATH

say() { printf 'tests/run.sh: %s\n' "$*"; }
fail() { printf 'tests/run.sh: error: %s\n' "$*" >&2; exit 69; }
have() { command -v "$1" >/dev/null 2>&1; }

scratch= others=
# What a killed pytest leaves: every cluster has its directory below our TMPDIR.
clean_up() {
    trap '' HUP INT TERM
    for other in $others; do kill "${other#*:}" 2>/dev/null; done
    [ -n "$scratch" ] || return
    for conf in "$scratch"/tmp/slurm.*/slurm.conf "$scratch"/tmp/*/*/slurm.conf; do
        [ -f "$conf" ] && "$python" contrib/cluster stop "${conf%/*}"
    done
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# 1. Packages.  The version of venv must be that of the interpreter, and it has a package of its
# own in Debian; an interpreter from elsewhere brings its venv along.
wanted=
for pair in gcc:gcc slurmctld:slurm-wlm munged:munge bc:bc patchelf:patchelf setcap:libcap2-bin \
        ps:procps setpriv:util-linux man:man-db; do
    have "${pair%%:*}" || wanted="$wanted ${pair#*:}"
done
[ -e /usr/include/stdio.h ] || wanted="$wanted libc6-dev"
python=${PYTHON:-python3}
have "$python" || wanted="$wanted python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null || wanted="$wanted python3-venv python3-pip"
if [ -z "$wanted" ]; then
    say "packages: all there"
elif [ "$(id -u)" = 0 ] && have apt-get; then
    say "packages: installing$wanted"
    # policy-rc.d: the packages of Slurm and munge would start daemons of the system's.
    policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then policy=; else printf '#!/bin/sh\nexit 101\n' >$policy; fi
    [ -z "$policy" ] || chmod 755 $policy
    log=$(mktemp)
    { apt-get -qq -o DPkg::Lock::Timeout=300 update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y \
            --no-install-recommends $wanted; } </dev/null >"$log" 2>&1
    status=$?
    [ -z "$policy" ] || rm -f $policy
    [ $status = 0 ] || { cat "$log" >&2; rm -f "$log"; fail "cannot install$wanted"; }
    rm -f "$log"
else
    say "packages: missing, tests that need them will be skipped:$wanted"
fi
have "$python" || fail "$python: not found: install python3"

# 2. The cache, and the virtual environment in it: one for each interpreter.
if [ -n "${SRUN_CR_TEST_CACHE:-}" ]; then
    cache=$SRUN_CR_TEST_CACHE
elif [ "$(id -u)" = 0 ]; then
    cache=/var/cache/srun_cr-tests
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/srun_cr-tests
fi
mkdir -p "$cache" && cache=$(cd "$cache" && pwd) || fail "$cache: cannot be created"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "$python: does not run"
venv=$cache/venv-$version
if "$venv/bin/python" -c 'import pytest, mypy, coverage' 2>/dev/null; then
    say "virtual environment: $venv"
else
    say "virtual environment: creating $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$venv: cannot be created: install python3-venv"
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install \
        'pytest>=7' mypy coverage || fail "pip cannot install pytest, mypy and coverage"
fi
python=$venv/bin/python

# Other Pythons for the unit tests: the oldest and the newest from 3.6 on, of pyenv's and on PATH.
find_pythons() {
    for candidate in "$HOME"/.pyenv/versions/3.*/bin/python3 $(
            IFS=:; for entry in $PATH; do ls "$entry"/python3.[0-9] "$entry"/python3.[0-9][0-9]
            done 2>/dev/null); do
        [ -x "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip
if sys.version_info >= (3, 6): print("%d %d" % sys.version_info[:2], sys.executable)' 2>/dev/null
    done | sort -u -k1,1n -k2,2n
}
pythons=
for line in "$(find_pythons | head -n 1)" "$(find_pythons | tail -n 1)"; do
    other=${line##* }
    number=$(echo "$line" | cut -d' ' -f1,2 | tr ' ' .)
    [ -n "$other" ] && [ "$number" != "$version" ] || continue
    if ! "$cache/venv-$number/bin/python" -c 'import pytest' 2>/dev/null; then
        say "virtual environment: creating $cache/venv-$number"
        rm -rf "$cache/venv-$number"
        # The pip that 3.6 comes with takes packages that are too new for it; this one does not.
        pip="$cache/venv-$number/bin/python -m pip --quiet --disable-pip-version-check"
        { "$other" -m venv "$cache/venv-$number" &&
            { [ "$number" != 3.6 ] || $pip install 'pip>=21,<22'; } &&
            $pip install 'pytest>=7'; } >"$cache/pip.log" 2>&1 ||
            { say "Python $number: no pytest for it: see $cache/pip.log"; continue; }
    fi
    pythons="$pythons $cache/venv-$number/bin/python"
done
say "unit tests also on: ${pythons:-skipped, there is no Python but $version}"

# 3. CRIU, for the tests that dump and restore real processes.
say "CRIU: a working one in $cache/criu"
if sh contrib/criu_prefix.sh "$cache/criu" --setcap; then
    SRUN_CR_TEST_CRIU=$cache/criu/bin/criu
    export SRUN_CR_TEST_CRIU
    if [ -x "$cache/criu/bin/criu-user" ]; then
        SRUN_CR_TEST_CRIU_USER=$cache/criu/bin/criu-user
        export SRUN_CR_TEST_CRIU_USER
    fi
else
    say "CRIU: none works here, tests that need it will be skipped"
fi

# 4. Types.
say "mypy --strict"
modules=srun_cr.py
[ -e srun_cr_ctypes.py ] && modules="$modules srun_cr_ctypes.py"
"$python" -m mypy --strict --cache-dir "$cache/mypy" $modules
types=$?

# 5. Tests; the unit tests on other Pythons run beside, as most of the time here is waiting.
# Ordinary users' tasks enter the directory of temporary files, hence 0755; a short path, as
# sockets are made below it.
scratch=$(mktemp -d /tmp/cr.XXXXXX) || fail "no temporary directory"
mkdir "$scratch/tmp"
chmod 755 "$scratch"
chmod 1777 "$scratch/tmp"
for other in $pythons; do
    number=$(echo "$other" | sed 's/.*venv-\([0-9.]*\).*/\1/')
    mkdir -m 1777 "$scratch/$number"
    PYTHONDONTWRITEBYTECODE=1 TMPDIR=$scratch/$number nice "$other" -m pytest -q \
        -m 'not cluster' -p no:cacheprovider --basetemp="$scratch/$number/t" tests \
        </dev/null >"$scratch/$number.log" 2>&1 &
    others="$others $number:$!"
done
say "pytest"
# Coverage's data is written by what the tests start as well, in whatever directory and as
# whatever user that runs.
COVERAGE_FILE=$scratch/tmp/coverage
export COVERAGE_FILE
# The output is seen as it comes and kept: its last line is to be the last of all, and a pipe's
# status in this shell is tee's, so pytest's is written beside.
{
    TMPDIR=$scratch/tmp SRUN_CR_TEST_LONG=${SRUN_CR_TEST_LONG:-1} \
        "$python" -m coverage run -m pytest -o cache_dir="$cache/pytest" \
        --basetemp="$scratch/tmp/t" tests "$@"
    echo $? >"$scratch/status"
} 2>&1 | tee "$scratch/output"
status=$(cat "$scratch/status" 2>/dev/null)

for other in $others; do
    wait "${other#*:}" && result=passed || { result=failed; types=1; }
    say "unit tests on Python ${other%%:*}: $result"
    [ $result = passed ] || cat "$scratch/${other%%:*}.log"
    tail -n 1 "$scratch/${other%%:*}.log"
done

# 6. Coverage.
say "coverage"
"$python" -m coverage combine --quiet
"$python" -m coverage report --include="$PWD/srun_cr.py,$PWD/srun_cr_ctypes.py"
[ $types = 0 ] || say "mypy, or the unit tests on another Python, failed: see above"
tail -n 1 "$scratch/output"
[ "$types" = 0 ] || exit "$types"
exit "${status:-1}"
