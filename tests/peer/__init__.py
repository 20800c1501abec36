"""`pipetask run` and `qgexec run` on copies of one repository: what they leave must be the same.

A package of its own: pipetask, qgexec and its workers import `peer.tasks`.
"""
