"""OpenVINO on the CPU: the session, its int8 weights and its rewrite of recurrent layers."""
