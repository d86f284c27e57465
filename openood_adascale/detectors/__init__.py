"""The methods: what each learns and how it judges, a file per method, all listed in :mod:`.registry`."""
