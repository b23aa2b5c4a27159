#!/usr/bin/env bash
# End what `start.sh FOLDER` has started
for name in slurmd slurmctld munge/; do
    [ "$name" = munge/ ] && file="$1/munge/pid" || file="$1/$name.pid"
    [ -f "$file" ] && kill "$(cat "$file")"
done
exit 0
