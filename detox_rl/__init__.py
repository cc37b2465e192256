"""detox_rl: PPO fine-tuning of FLAN-T5 so that dialogue summaries carry no toxic language."""

__version__ = "0.1.0"
