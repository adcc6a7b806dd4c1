"""verl 0.9 as the engine beyond one device, through its public plug-in points; nothing here changes verl itself.

`config.py` and `overrides.py` need no verl; all the other modules do.
"""
