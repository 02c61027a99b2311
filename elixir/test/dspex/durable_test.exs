defmodule DSPex.DurableTest do
  # A setup that creates a durable session, which survives its worker.
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Signature

  @moduletag timeout: 120_000

  setup do
    directory = Path.join(System.tmp_dir!(), "bridge-store-#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    {:ok, options: [adapter: "dspy", args: ["--store", "sqlite:#{directory}/sessions.db"]]}
  end

  defp set_up(bridge, if_exists) do
    session = [session_id: "main"]
    Bridge.call!(bridge, :configure_lm, %{provider: "offline"}, 30_000)
    Bridge.call!(bridge, :create_session, %{durable: true}, session)
    config = %{id: "qa", signature: Signature.new("question, passage -> answer")}
    Bridge.call!(bridge, :create_program, Map.merge(config, if_exists), session)
  end

  test "programs of a durable session are created again with if_exists", %{options: options} do
    for if_exists <- ["keep", "replace"] do
      bridge = start_bridge([setup: &set_up(&1, %{if_exists: if_exists})] ++ options)

      signal(worker_pid(bridge), :KILL)
      inputs = %{question: "Where is the Louvre?", passage: "The Louvre is in Paris."}
      args = %{program_id: "qa", inputs: inputs}
      wait_until(fn -> Bridge.get_status(bridge).status == :starting end)

      assert {:ok, %{"outputs" => %{"answer" => "Paris"}}} =
               Bridge.call(bridge, :execute_program, args, session_id: "main", timeout: 60_000)

      stop_supervised!(bridge)
    end
  end

  test "without if_exists the error names the program, and the bridge stays alive", %{
    options: options
  } do
    setup = &set_up(&1, %{})
    options = [setup: setup, backoff_min: 60_000, backoff_max: 60_000] ++ options
    bridge = start_bridge(options)
    signal(worker_pid(bridge), :KILL)

    line = "Program with ID 'qa' already exists"
    wait_until(fn -> last_message(bridge) =~ line end, 30_000)
    assert {:error, %Error{} = error} = Bridge.call(bridge, :ping, %{}, 1_000)
    assert error.message =~ line
  end

  defp last_message(bridge) do
    case Bridge.get_status(bridge).last_error do
      nil -> ""
      error -> error.message
    end
  end
end
