#!/bin/bash
# A sweep on nodes of a Slurm cluster, from a checkout that all of them see: sbatch docs/slurm.sh SWEEP.yaml --out DIR
# What this does and what you see of it: docs/cluster.md. Options of sbatch before the script's name replace those below.
#SBATCH --job-name=kvsweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
export PATH="${KVSWEEP_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH"

# A token for this job alone. srun hands it on with the environment, so it is in no file and on no command line.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0
unset OMP_NUM_THREADS

log="$SLURM_SUBMIT_DIR/ray-$SLURM_JOB_ID.log"
# Ray counts the machine's cores and GPUs; what counts is what Slurm gave. timing: one timed unit per node at a time.
options='--num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --resources="{\"timing\": 1}"'
trap 'ray stop --force >>"$log" 2>&1' EXIT # the nodes are this job's alone: --exclusive
eval "ray start --head --port=6379 --dashboard-host=127.0.0.1 $options" >>"$log" 2>&1
head=$(python -c "import ray; print(ray.util.get_node_ip_address())") # by address: not every name resolves in Ray
if ((SLURM_NNODES > 1)); then
    others=$((SLURM_NNODES - 1))
    srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \
        bash -c "ray start --address=$head:6379 --block $options" >>"$log" 2>&1 &
fi
python - "$SLURM_NNODES" <<'PYTHON'
import sys, time, ray
wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
ray.init("auto", logging_level="ERROR")
while (joined := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"error: only {joined} of {wanted} nodes joined Ray within 300 s")
    time.sleep(1)
PYTHON

# Slurm's signal before the time is up reaches this shell; handed on, it lets the driver end as by Ctrl-C.
python -m pipeline.sweep "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2>/dev/null; do # the signal ended the wait, not the driver
    status=0
    wait "$driver" || status=$?
done
exit "$status"
