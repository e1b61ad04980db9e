"""What a run needs before there is a machine for it: bytes, FLOPs, collectives and time, counted or compiled."""
