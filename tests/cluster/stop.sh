#!/usr/bin/env bash
# Cancel the jobs of what `start.sh FOLDER` has started, and end it
export SLURM_CONF="$1/slurm.conf"
if [ -f "$1/slurmctld.pid" ]; then
    scancel --user="$(id -u)"
    # The processes of a job that is about to end would wait for a controller that is gone
    for _ in $(seq 60); do
        [ -n "$(squeue --noheader 2> /dev/null)" ] || break
        sleep 0.5
    done
fi
for file in "$1/slurmd.pid" "$1/slurmctld.pid" "$1/munge/pid"; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid"
    for _ in $(seq 20); do
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.5
    done
    kill -9 "$pid" 2> /dev/null
done
exit 0
