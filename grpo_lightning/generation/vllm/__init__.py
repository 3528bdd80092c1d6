"""vLLM in the processes of the training (``colocate.py``, made of ``engine``), or as a server beside them (``server.py``, of ``serving``).

Both ask with ``requests`` and are sent what ``weights`` streams, are built from a ``skeleton``, and refuse ``models`` that vLLM would
run otherwise than they are trained. ``patches`` is what is changed in vLLM, ``compat`` what differs between its versions. Each folder
needs those of this list that come before it: patches, weights and requests, engine and serving.
"""
