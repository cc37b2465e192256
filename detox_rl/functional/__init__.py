"""Pure tensor maths of PPO on an encoder-decoder. Imports torch and nothing else.

Every mask has one polarity: True (or 1) marks a real token, False a pad.
"""
