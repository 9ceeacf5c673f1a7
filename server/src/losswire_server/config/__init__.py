"""Every setting of the server, with its unit, default and variable.

A setting `max_inflight_bytes` is the flag `--max-inflight-bytes`, the variable `LOSSWIRE_MAX_INFLIGHT_BYTES` and the
key `max_inflight_bytes` of the TOML file named by `--config` or `LOSSWIRE_CONFIG`, in that order of precedence.

    settings.py    the settings, and what each accepts beside the others
    forms.py       what an address, a path, a list is as text
    file.py        the file, as a source of settings
    loading.py     from flags, variables and file to settings, or a line for each that is refused
"""
