"""What stays of pruned layers, fitted to what the layers gave before."""
