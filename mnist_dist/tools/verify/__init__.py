"""The command `verify`: is this distributed set-up right?"""
