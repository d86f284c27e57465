"""OpenOOD's protocol on any loaders, without OpenOOD: metrics, benchmark, evaluation."""
