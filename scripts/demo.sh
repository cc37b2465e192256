#!/usr/bin/env bash
# Sets everything up and runs the main job on the embedded default:   bash scripts/demo.sh [seed ...]
# One run a seed; without an argument, seed 0 alone. What a run writes lies in lightning_logs/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

for seed in "${@:-0}"; do
    echo "Training with seed $seed: PPO on the embedded dialogues, then before and after on the test split."
    "$PYTHON" -m detox_rl.fit --seed_everything "$seed"
done
