#!/usr/bin/env bash
# Makes detox_rl/assets/summary_adapter again: the warm start, which now quotes rude words and now reports them, as people do.
#   bash scripts/assets/make_summary_adapter.sh
# Each rude dialogue has two targets, its neutral and its quoting summary; train and validation split alone.
# The 600 steps took 70 minutes on two cores without bf16 that had other work too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m detox_rl.sft --data.further_summary_columns+=quoting_summary \
    --model.lora_encoder true --model.lora_rank 8 --model.lora_targets '[q, k, v, o, wi_0, wi_1, wo]' --model.lora_dropout 0 \
    --model.lr 5e-4 --model.lr_schedule cosine \
    --trainer.max_steps 600 --trainer.val_check_interval 100 --trainer.default_root_dir "$work"
cp "$work"/lightning_logs/version_0/adapter/*.{json,safetensors} detox_rl/assets/summary_adapter/  # the card stays
