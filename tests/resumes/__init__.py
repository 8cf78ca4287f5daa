"""Streams with each option of a request, and with mixes of them, handed over at random tokens.

`requests` says what they ask for, `takeovers` generates them on the default engine as a worker does, `measures` redraws
each token and says what the option did to it, `cuts` says where a stream was handed over, `suite` puts them together.
"""
