"""What was measured, read, held against the published figures and shown.

From the bottom up: ``text``, ``files`` and ``names`` (what can be shown, written, and what things are called);
``identify`` (what a path says), ``tables``, ``scores``, ``searches`` (what OpenOOD and this package leave in a folder;
pickles by ``unpickling``, which executes nothing); ``runs`` and ``gather`` (all of it together); then ``compare``, and
``report`` with its parts ``sheets``, ``page``, ``markdown``, ``pictures`` and ``leaderboard``.

Needs neither torch nor OpenOOD, and Matplotlib only in ``pictures``.
"""
