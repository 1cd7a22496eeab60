# SPDX-License-Identifier: Apache-2.0
"""What the command line can be asked for: one file for each group of verbs, which reads their words and hands them on.

Each has ``add(verbs)``, which declares them, and sets ``carry_out`` to what takes the words that were read and gives
the exit code. What carries a verb out is imported when it is asked for.
"""
