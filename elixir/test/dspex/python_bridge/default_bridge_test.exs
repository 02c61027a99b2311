defmodule DSPex.PythonBridge.DefaultBridgeTest do
  # Not async: uses the default name.
  use ExUnit.Case, async: false

  import Workers
  alias DSPex.PythonBridge.Bridge

  test "the default bridge needs no name" do
    start_supervised!({Bridge, options()})
    assert {:ok, %{"status" => "ok"}} = Bridge.call(:ping)
    assert {:ok, %{"a" => 1}} = Bridge.call(:echo_decoded, %{a: 1})
    assert {:ok, %{"a" => 1}} = Bridge.call(:echo_decoded, %{a: 1}, 1_000)
    assert %{"a" => 1} = Bridge.call!(:echo_decoded, %{a: 1})
    assert %{"a" => 1} = Bridge.call!(:echo_decoded, %{a: 1}, timeout: 1_000)
    assert :ok = Bridge.cast(:ping)
    assert [result: %{"a" => 1}] = Enum.to_list(Bridge.stream(:echo_decoded, %{a: 1}))
    assert %{status: :running} = Bridge.get_status()
    assert Bridge.stop() == :ok
  end
end
