#!/usr/bin/env bash
# Start munge and a SLURM of one node, all of whose files are in FOLDER; `stop.sh FOLDER` ends them. No systemd, no cgroups, no accounting.
# Needs root and Debian's packages slurm-wlm and munge. Then: export SLURM_CONF=FOLDER/slurm.conf
set -euo pipefail
folder=$(realpath "$1")
host=$(hostname -s)
mkdir -p "$folder"/{state,spool,munge}
chmod 755 "$folder" "$folder/munge"

head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 600 "$folder/munge/key"
# A munge of our own, so that nothing of the machine's is touched; --force: it runs as root, wherever the folder is
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>> "$folder/munge/log"

cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURM_TEST_PORT:-16817}
SlurmdPort=$((${SLURM_TEST_PORT:-16817} + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in $(seq 60); do
    case "$(sinfo --noheader --format=%T 2> /dev/null)" in idle*|mixed*) exit 0;; esac
    sleep 0.5
done
echo "the node of SLURM isn't up; the ends of the logs:" >&2
tail -n 20 "$folder/slurmctld.log" "$folder/slurmd.log" >&2
exit 1
