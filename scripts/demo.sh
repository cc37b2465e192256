#!/usr/bin/env bash
# Sets everything up and runs the main job on the embedded default:   bash scripts/demo.sh [seed ...]
# One run a seed; without an argument, seed 0 alone. What a run writes lies in lightning_logs/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

for seed in "${@:-0}"; do
    echo "Training with seed $seed: 40 iterations of PPO on the embedded dialogues."
    SECONDS=0
    "$PYTHON" -m detox_rl.fit --seed_everything "$seed"
    echo "Training took $SECONDS seconds. Now before and after, on the test split."
    run=$(ls -td lightning_logs/version_* | head -n 1)
    "$PYTHON" -m detox_rl.evaluate "$run"
done
