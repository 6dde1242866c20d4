def test_the_same_command_starts_and_then_shows_the_result(cli):
    first = cli.run("counter", steps=3)
    second = cli.run("counter", steps=3)
    assert "counted to 3" in first.stdout
    assert "It succeeded" in second.stderr
    assert len(cli.only().record["attempts"]) == 1
