"""Parts of nets around the mixers: patch stems, feed-forward, norms and scales, heads."""
