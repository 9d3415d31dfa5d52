#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Put a CRIU that works on the running kernel into a private directory, without installing it.
#
#   sh contrib/criu_prefix.sh PREFIX [--setcap]
#
# PREFIX/bin/criu        runs CRIU (root, or whoever may)
# PREFIX/bin/criu-user   with --setcap: the same with file capabilities, for ordinary users who
#                        say --unprivileged
#
# A criu of the system that can dump a process here is used as it is.  Else criu and the libraries
# it needs come from a later suite of the Debian archive this machine's apt is configured for:
# distributions' CRIU is often older than the kernel it meets.  apt works in a state directory of
# its own, so the machine's package lists stay as they are.  The last line printed is the path.
# Exit status: 0; 64 wrong usage; 69 no criu that works here, with the reason in one line.

set -u
umask 022
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'criu_prefix: %s\n' "$*" >&2; }
fail() { say "$*"; exit 69; }
usage() { say "usage: criu_prefix.sh PREFIX [--setcap]"; exit 64; }

prefix= setcap=no
for argument do
    case $argument in
        --setcap) setcap=yes ;;
        -*) usage ;;
        *) [ -z "$prefix" ] || usage; prefix=$argument ;;
    esac
done
[ -n "$prefix" ] || usage
mkdir -p "$prefix/bin" || fail "cannot create $prefix/bin"
prefix=$(cd "$prefix" && pwd) || fail "cannot enter $prefix"
case $prefix in
    *[!A-Za-z0-9_./@%+,-]*) fail "$prefix: only A-Za-z0-9_./@%+,- may be in the path" ;;
esac

scratch=$(mktemp -d) || fail "no temporary directory"
trap 'rm -rf "$scratch"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# start_sleeper: a process to dump, its pid in $sleeper.  In a session of its own and with no
# descriptor but the first three, as in a container those we were given may come from outside,
# which cannot be dumped.  sh cannot close descriptors above 9 by number.
start_sleeper() {
    (
        command -v python3 >/dev/null && exec python3 -c 'import os
os.closerange(3, 65536); os.setsid(); os.execvp("sleep", ["sleep", "600"])'
        exec setsid sleep 600
    ) </dev/null >/dev/null 2>&1 &
    sleeper=$!
    until read -r name <"/proc/$sleeper/comm" && [ "$name" = sleep ]; do
        kill -0 $sleeper 2>/dev/null || break
        sleep 0.1
    done
}

# works CRIU: does it dump a process and restore it?  `criu check` alone is not proof: a
# CRIU older than the kernel can pass it and fail at the first dump.  Without privilege there is
# nothing better to ask for than that the program starts.
works() {
    if [ "$(id -u)" != 0 ]; then
        "$1" --version >/dev/null 2>"$scratch/why"
        return
    fi
    "$1" check >"$scratch/why" 2>&1 || return
    rm -rf "$scratch/image"; mkdir "$scratch/image"
    start_sleeper
    "$1" dump -t $sleeper -D "$scratch/image" --shell-job >"$scratch/why" 2>&1
    status=$?
    kill -KILL $sleeper 2>/dev/null
    wait $sleeper 2>/dev/null
    [ $status = 0 ] || return
    "$1" restore -D "$scratch/image" --shell-job -d --pidfile "$scratch/image/pid" \
        >"$scratch/why" 2>&1
    status=$?
    [ -s "$scratch/image/pid" ] && kill -KILL "$(cat "$scratch/image/pid")" 2>/dev/null
    return $status
}

# why_not: the line of CRIU's output that names the cause, for a message of one line.
why_not() {
    { grep Error "$scratch/why" | grep -v FAILED || tail -n 1 "$scratch/why"; } | tail -n 1
}

# The machine's own configuration is read as well (it may name a proxy), and after APT_CONFIG; a
# default release in it would name a suite the private lists do not have, an error to apt.
apt_get() { apt-get -qq -o APT::Default-Release= "$@"; }
apt_cache() { apt-cache -o APT::Default-Release= "$@"; }

# fetch_archive SUITE: fill $scratch/apt with the package lists of that suite of the archive.
# The source is the machine's own entry for the suite it runs, with the suite's name replaced:
# mirror, keyring and options are then what its owner has chosen.
fetch_archive() {
    rm -rf "$scratch/apt"
    mkdir -p "$scratch/apt/state/lists/partial" "$scratch/apt/cache/archives/partial"
    : >"$scratch/apt/status"
    set -- "$1" "$scratch/apt/source"
    own="${VERSION_CODENAME:-none}|stable|oldstable|testing|unstable|sid"
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk -v own="^($own)\$" -v suite="$1" '
            function finish(   i, n, word, ours, debian) {
                n = split(suites, word)
                for (i = 1; i <= n; i++) if (word[i] ~ own) ours = 1
                if (ours && !disabled && types ~ /(^| )deb( |$)/ && !done) {
                    printf "%sSuites: %s\n", text, suite
                    done = 1
                }
                text = suites = types = ""; disabled = 0
            }
            /^[ \t]*$/ { finish(); next }
            /^#/ { next }
            /^[^ \t]/ { key = tolower($1) }
            key == "suites:" { sub(/^[^ \t]*:/, ""); suites = suites " " $0; next }
            key == "types:" { sub(/^[^ \t]*:/, ""); types = types " " $0
                              if (/deb/) text = text "Types: deb\n"; next }
            key == "enabled:" && tolower($2) ~ /^(no|false|0|off)$/ { disabled = 1 }
            { text = text $0 "\n" }
            END { finish() }' "$file" >"$2.sources"
        [ -s "$2.sources" ] && break
    done
    source=$2.sources
    if [ ! -s "$source" ]; then
        source=$2.list
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            awk -v own="^($own)\$" -v suite="$1" '
                $1 == "deb" {
                    at = 2
                    if ($2 ~ /^\[/) while ($at !~ /\]$/ && at < NF) at++
                    if ($2 ~ /^\[/) at++
                    if ($(at + 1) ~ own) { $(at + 1) = suite; print; exit }
                }' >"$source"
    fi
    [ -s "$source" ] || return
    # APT::Sandbox::User: apt's own user could not enter a private directory of root's.
    cat >"$scratch/apt/conf" <<END
Dir::Etc::sourcelist "$source";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$scratch/apt/state";
Dir::State::status "$scratch/apt/status";
Dir::Cache "$scratch/apt/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
END
    export APT_CONFIG="$scratch/apt/conf"
    apt_get update >"$scratch/why" 2>&1 && apt_cache show criu >/dev/null 2>&1
}

# libraries PACKAGE: it and, recursively, the libraries it depends on.  Programs it depends on
# (iproute2, python3) are for uses of CRIU other than dump and restore.
libraries() {
    found=" $1 " queue=$1
    while [ -n "$queue" ]; do
        next=
        for package in $(apt_cache depends --no-recommends --no-suggests \
                --no-conflicts --no-breaks --no-replaces --no-enhances $queue |
                awk '$1 ~ /Depends:$/ && $2 ~ /^lib/ { print $2 }' | sort -u); do
            case $found in *" $package "*) continue ;; esac
            found="$found$package "
            next="$next $package"
        done
        queue=$next
    done
    echo $found
}

# unpack: criu and its libraries into PREFIX/root, from the first suite that has it.
unpack() {
    for command in apt-get apt-cache dpkg; do
        command -v $command >/dev/null || fail "no criu that works here, and no $command to get one"
    done
    VERSION_CODENAME=
    [ -r /etc/os-release ] && . /etc/os-release
    case ${ID:-}.$VERSION_CODENAME in
        debian.bullseye) suites="bookworm trixie" ;;
        debian.bookworm) suites="trixie forky testing sid" ;;
        debian.trixie) suites="forky trixie-backports testing sid" ;;
        debian.*) suites="testing sid" ;;
        *) suites=$VERSION_CODENAME ;;
    esac
    for suite in $suites none; do
        [ $suite != none ] ||
            fail "no suite of ($suites) offers criu: $(tail -n 1 "$scratch/why" 2>/dev/null)"
        say "looking for criu in $suite"
        fetch_archive "$suite" && break
    done
    packages=$(libraries criu)
    say "unpacking $packages"
    mkdir "$scratch/debs"
    (cd "$scratch/debs" && apt_get download $packages) >"$scratch/why" 2>&1 ||
        fail "download from $suite: $(tail -n 1 "$scratch/why")"
    rm -rf "$prefix/root" "$prefix/root.new"
    mkdir "$prefix/root.new"
    for deb in "$scratch"/debs/*.deb; do
        dpkg -x "$deb" "$prefix/root.new" || fail "cannot unpack ${deb##*/}"
    done
    chmod -R go+rX "$prefix/root.new"
    mv "$prefix/root.new" "$prefix/root"
    unset APT_CONFIG
}

# locate: the unpacked program, its loader and where its libraries are.
locate() {
    binary=$(find "$prefix/root" -path '*/sbin/criu' -type f 2>/dev/null | head -n 1)
    loader=$(find "$prefix/root" -name 'ld-linux*.so.*' -type f 2>/dev/null | head -n 1)
    path=$(find "$prefix/root" -name 'lib*.so.*' 2>/dev/null | sed 's|/[^/]*$||' | sort -u |
        grep -v /gconv | tr '\n' ':')
    path=${path%:}
    [ -n "$binary" ] && [ -n "$loader" ]
}

# make_user: a copy that can carry capabilities.  The kernel grants them to the file that is
# executed, so it cannot be the loader: the copy names loader and libraries itself.
make_user() {
    for command in patchelf setcap; do
        command -v $command >/dev/null && continue
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
                patchelf libcap2-bin </dev/null >/dev/null 2>&1
        command -v $command >/dev/null ||
            { say "no criu-user: install patchelf and libcap2-bin for it"; return; }
    done
    user=$prefix/bin/criu-user
    rm -f "$user"
    if locate; then
        cp "$binary" "$user.new" && chmod 755 "$user.new" &&
            patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$path" "$user.new"
    else
        cp "$(command -v criu)" "$user.new" && chmod 755 "$user.new"
    fi || { say "no criu-user: patchelf failed"; return; }
    # Without cap_setpcap a restore by an ordinary user crashes.
    setcap cap_checkpoint_restore,cap_setpcap+eip "$user.new" 2>"$scratch/why" ||
        { say "no criu-user: $(cat "$scratch/why")"; rm -f "$user.new"; return; }
    mv "$user.new" "$user"
    "$user" --version >/dev/null 2>"$scratch/why" ||
        { say "no criu-user: it does not start: $(why_not)"; rm -f "$user"; }
}

criu=$prefix/bin/criu
if ! { [ -x "$criu" ] && works "$criu"; }; then
    system=$(command -v criu)
    if [ -n "$system" ] && works "$system"; then
        say "using $system"
        rm -rf "$prefix/root"
        printf '#!/bin/sh\nexec %s "$@"\n' "$system" >"$criu.new"
    else
        locate || unpack
        locate || fail "the package criu has no program or no loader in it"
        printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$loader" "$path" "$binary" \
            >"$criu.new"
    fi
    chmod 755 "$criu.new" && mv "$criu.new" "$criu"
    rm -f "$prefix/bin/criu-user"
    works "$criu" || fail "$criu cannot dump and restore a process here: $(why_not)"
fi
if [ $setcap = yes ] && [ ! -x "$prefix/bin/criu-user" ]; then
    make_user
fi
echo "$criu"
