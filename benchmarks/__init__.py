"""flowlib beside its peers: the same work, interleaved in one run; `make bench` writes book/results/benchmarks.json."""
