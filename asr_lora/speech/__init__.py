"""Sound and text by themselves: decode, resample, augment, normalize; languages."""
