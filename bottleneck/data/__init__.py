"""Images and what is known of them: sources, safe decoding, preprocessing, augmentation, splits."""
