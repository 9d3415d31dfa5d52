#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Show a checkpoint and a requeue on a throwaway Slurm: sh contrib/demo.sh
#
# As root on Debian or Ubuntu, with nothing prepared: installs slurm-wlm, munge and python3 where
# they are missing, starts a cluster of two nodes on the loopback interface, and takes it down
# again.  Exit status: 0 if no number was lost or counted twice.

set -u
umask 022
PATH=$PATH:/usr/sbin:/sbin
last=40

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: error: %s\n' "$*" >&2; exit 1; }

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    tries=$(($1 * 5)); shift
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.2
    done
}
counted() { [ -f "$dir/log" ] && [ "$(grep -c "^task . counts" "$dir/log")" -ge "$1" ]; }
requeued() { grep -q "^srun_cr: job $job requeued" "$dir/log"; }
over() {
    case $(scontrol -o show job "$job") in
        *JobState=COMPLETED*|*JobState=FAILED*|*JobState=CANCELLED*) ;;
        *) return 1 ;;
    esac
}

inside() {
    cd "$dir" || exit 1
    if [ "$engine" = criu ]; then
        say "The program: it counts, and knows nothing of checkpoints"
    else
        say "The program: it counts, and saves itself at SIGUSR2 (CRIU cannot be used here)"
    fi
    cat "$dir/bin/count"
    say "The job script: \`srun\` has become \`srun_cr\`; one variable names the signal to act on"
    cat "$dir/job.sh"

    say "sbatch job.sh"
    job=$(sbatch --parsable --output="$dir/log" "$dir/job.sh") || fail "sbatch failed"
    wait_for 60 counted 16 || { cat "$dir/log"; fail "the job does not count"; }
    say "scancel -b -s USR1 $job       (in the middle of its work)"
    scancel -b -s USR1 "$job"
    wait_for 60 requeued || { cat "$dir/log"; fail "the job was not requeued"; }
    say "The job waits for Slurm to start it again, and counts to the end"
    wait_for 120 over || { cat "$dir/log"; fail "the job does not end"; }

    say "What the job printed, in its two runs"
    cat "$dir/log"
    say "What was written: the checkpoint"
    ls -d "$dir"/*.cr/count-*/0*
    say "Result"
    for task in 0 1; do
        seq "$last" >"$dir/expected"
        sed -n "s/^task $task counts //p" "$dir/log" >"$dir/counted"
        if ! cmp -s "$dir/expected" "$dir/counted"; then
            diff "$dir/expected" "$dir/counted"
            fail "task $task lost numbers or counted them twice"
        fi
        echo "task $task counted 1 to $last: each number once, in order"
    done
    scontrol -o show job "$job" | tr ' ' '\n' | grep -E '^(JobId|JobState|Restarts|ExitCode)='
}

if [ "${1:-}" = --inside ]; then
    dir=$2 engine=$3
    inside
    exit
fi

cd "$(dirname "$0")/.." || exit 1
root=$(pwd)
if ! command -v python3 >/dev/null; then
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || fail "python3: not found: install it"
    echo "demo: installing python3"
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends python3; } \
        </dev/null >/dev/null 2>&1 || fail "cannot install python3"
fi
dir=$(mktemp -d /tmp/srun_cr-demo.XXXXXX) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM
mkdir "$dir/bin"
printf '#!/bin/sh\nexec python3 "%s/srun_cr.py" "$@"\n' "$root" >"$dir/bin/srun_cr"

engine=app
if [ "$(id -u)" = 0 ]; then
    say "Looking for a CRIU that works on this kernel"
    if sh contrib/criu_prefix.sh "$dir/criu"; then engine=criu; fi
fi
if [ $engine = criu ]; then
    variables="export SRUN_CR_ENGINE=criu SRUN_CR_CRIU=$dir/criu/bin/criu"
    cat >"$dir/bin/count" <<'END'
#!/bin/sh
n=1
while [ $n -le $1 ]; do
    echo "task $SLURM_PROCID counts $n"
    n=$((n + 1))
    sleep 0.25
done
END
else
    variables="export SRUN_CR_ENGINE=app SRUN_CR_APP_SIGNAL=USR2"
    cat >"$dir/bin/count" <<'END'
#!/usr/bin/env python3
import os, signal, sys, time
name = "/task.{}.ckpt".format(os.environ["SLURM_PROCID"])
asked = []
signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
n = 1
if "SLURM_RESTART_DIR" in os.environ:
    n = int(open(os.environ["SLURM_RESTART_DIR"] + name).read())
while n <= int(sys.argv[1]):
    print("task", os.environ["SLURM_PROCID"], "counts", n, flush=True)
    n += 1
    time.sleep(0.25)
    if asked:
        path = os.environ["SLURM_CHECKPOINT_IMAGE_DIR"] + name
        with open(path + ".new", "w") as file:
            file.write(str(n))
        os.rename(path + ".new", path)
        sys.exit()
END
fi
cat >"$dir/job.sh" <<END
#!/bin/sh
#SBATCH --nodes=2 --ntasks=2 --requeue --open-mode=append
$variables
export SRUN_CR_SIGNALS=USR1=requeue
exec srun_cr --ntasks-per-node=1 count $last
END
chmod 755 "$dir" "$dir/bin/srun_cr" "$dir/bin/count"
say "Starting a throwaway Slurm cluster of two nodes"
PATH=$dir/bin:$PATH python3 contrib/cluster run --nodes 2 --cpus 2 \
    sh contrib/demo.sh --inside "$dir" $engine
