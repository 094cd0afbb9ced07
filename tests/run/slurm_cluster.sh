#!/usr/bin/env bash
# A real Slurm cluster of two nodes, n1 and n2, on this machine, for root, with all its files in one folder.
#
#     tests/run/slurm_cluster.sh start DIR      # then: export SLURM_CONF=DIR/slurm.conf
#     tests/run/slurm_cluster.sh node DIR n2    # start a node that was lost
#     tests/run/slurm_cluster.sh stop DIR
#
# Takes the Debian packages slurm-wlm and munge.
set -euo pipefail

command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
node=${3:-}
export SLURM_CONF=$dir/slurm.conf

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]  # all at once, so that they differ
print(*(one.getsockname()[1] for one in held))
PYTHON
}

configure() {
    local controller first second host
    read -r controller first second < <(free_ports 3)
    host=$(hostname -s)
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credentials have expired: two minutes if not told otherwise.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmdLogFile=$dir/slurmd-%n.log
SlurmdSpoolDir=$dir/spool-%n
# No cgroups, and any number of cores: it must run in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,sched_min_interval=0
ReturnToService=2
# Seconds: until a silent node is down, and from SIGTERM to SIGKILL.
SlurmdTimeout=10
KillWait=10
OverTimeLimit=0
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$first CPUs=2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$second CPUs=2
PartitionName=test Nodes=n1,n2 Default=YES OverSubscribe=NO MaxTime=60
CONF
}

start() {
    stop # what an earlier one has left
    mkdir -p "$dir/state" "$dir/spool-n1" "$dir/spool-n2"
    configure
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    # Forced, as it refuses folders that others can write to, such as those above a temporary one.
    munged --force --socket "$dir/munge.socket" --key-file "$dir/munge.key" --pid-file "$dir/munged.pid" \
        --log-file "$dir/munged.log" --seed-file "$dir/munge.seed"
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
    for _ in {1..60}; do
        if [[ $(sinfo --noheader --format=%T) == idle ]]; then
            return
        fi
        sleep 0.5
    done
    echo "the nodes did not come up: see the logs in $dir" >&2
    exit 1
}

stop() {
    local file pid
    if [[ -e $dir/slurmctld.pid ]] && timeout 10 scancel --user=root; then
        for _ in {1..30}; do
            [[ -n $(timeout 10 squeue --noheader) ]] || break
            sleep 0.5
        done
    fi
    for file in "$dir"/slurmd-n[12].pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
        [[ -e $file ]] || continue
        pid=$(<"$file")
        # After a crash the number may have gone to another process.
        if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == @(slurmd|slurmctld|munged) ]]; then
            kill "$pid"
            for _ in {1..20}; do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.5
            done
            kill -9 "$pid" 2>/dev/null || true
        fi
        rm -f "$file"
    done
}

case $command in
    start) start ;;
    stop) stop ;;
    node) slurmd -N "$node" ;;
    *) echo "usage: $0 start|stop|node DIR [NODE]" >&2 && exit 2 ;;
esac
