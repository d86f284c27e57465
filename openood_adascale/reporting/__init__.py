"""What was measured, read, held against the published figures and shown.

From the bottom up: ``text``, ``files`` and ``names`` (what can be shown, written, and what things are called);
``identify`` (what a path says), ``tables``, ``scores``, ``searches`` (what OpenOOD and this package leave in a folder;
pickles by ``unpickling``, which executes nothing), ``image_lists`` and ``image_table`` (which images these are of);
``runs`` and ``gather`` (all of it together); ``standouts``, ``thumbnails``, ``cards`` and ``gallery`` (which of the images
are shown); then ``compare``, ``rivals``, and ``report`` with its parts ``sheets``, ``page``, ``markdown``, ``pictures`` and
``leaderboard``.

Needs neither torch nor OpenOOD, Matplotlib only in ``pictures``, and Pillow only in ``thumbnails``.
"""
