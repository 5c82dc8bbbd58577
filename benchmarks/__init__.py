"""What gradshare costs in time and memory, beside its peers: `make bench`, `make bench-growth`."""
