"""Training the recogniser: CTC, augmentation, decoding, error rates, and fine-tuning."""
