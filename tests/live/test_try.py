from tests.live.conversation import Stage
def test_x(stage: Stage) -> None:
    """x"""
    for i in range(100):
        assert stage.is_served()
