from sieve.cli import main

main()
