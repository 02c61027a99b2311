defmodule DSPex.PythonBridge.StreamTest do
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}

  setup do: {:ok, bridge: start_bridge(adapter: "bridge_test_adapter:adapter")}

  test "events come in order, the result last", %{bridge: bridge} do
    events = Enum.to_list(Bridge.stream(bridge, :events, %{count: 3}, []))

    assert events == [
             {:chunk, %{"number" => 1}},
             {:chunk, %{"number" => 2}},
             {:chunk, %{"number" => 3}},
             {:result, %{"sent" => 3}}
           ]

    assert Bridge.get_status(bridge).open_calls == 0
  end

  test "each enumeration of a stream is a new call", %{bridge: bridge} do
    stream = Bridge.stream(bridge, :events, %{count: 1}, [])
    assert Enum.to_list(stream) == Enum.to_list(stream)
  end

  test "stopping early cancels the call", %{bridge: bridge} do
    assert [{:chunk, _}] = Enum.take(Bridge.stream(bridge, :events, %{count: 1, then: 60}, []), 1)
    assert wait_until(fn -> Bridge.call!(bridge, :sent, %{}, [])["sent"] == 1 end)
    assert %{abandoned: 1} = Bridge.get_status(bridge).stats
    refute_received _
  end

  test "an error is raised", %{bridge: bridge} do
    assert_raise Error, "Unknown command: pong", fn ->
      Enum.to_list(Bridge.stream(bridge, :pong, %{}, []))
    end

    assert_raise Error, fn ->
      Enum.to_list(Bridge.stream(bridge, :events, %{count: 1, then: 60}, 50))
    end

    # Neither call is cancelled, because both got their replies.
    assert %{abandoned: 0, errors: errors} = Bridge.get_status(bridge).stats
    assert errors == %{unknown_command: 1, deadline_exceeded: 1}
    refute_received _
  end

  test "a slow consumer pauses the worker, and loses no events", %{bridge: bridge} do
    parent = self()

    consumer =
      Task.async(fn ->
        Bridge.stream(bridge, :events, %{count: 1_000, every: 0.001}, [])
        |> Enum.map(fn element ->
          if element == {:chunk, %{"number" => 1}} do
            send(parent, :first)
            receive do: (:go_on -> :ok)
          end

          element
        end)
      end)

    assert_receive :first, 5_000
    # The worker pauses long before it has sent all events.
    wait_until(fn -> settled?(fn -> Bridge.get_status(bridge).stats.events end) end)
    assert Bridge.get_status(bridge).stats.events < 1_000
    send(consumer.pid, :go_on)
    elements = Task.await(consumer, 20_000)
    assert length(elements) == 1_001

    assert Enum.map(Enum.drop(elements, -1), fn {:chunk, data} -> data["number"] end) ==
             Enum.to_list(1..1_000)
  end

  defp settled?(read) do
    before = read.()
    Process.sleep(100)
    before > 0 and read.() == before
  end

  test "the end of the worker ends the stream", %{bridge: bridge} do
    worker = worker_pid(bridge)

    assert_raise Error, ~r/worker (ended with status 137|has ended)|port was closed/, fn ->
      bridge
      |> Bridge.stream(:events, %{count: 1, then: 60}, [])
      |> Enum.each(fn {:chunk, _} -> signal(worker, :KILL) end)
    end
  end
end
