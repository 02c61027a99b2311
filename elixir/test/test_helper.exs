alias DSPex.PythonBridge.Python

with {:ok, python, from} <- Python.find(),
     {:ok, _, _} <- Python.check(python) do
  IO.puts("Workers run in #{python} (#{from})")
else
  {:error, reason} ->
    IO.puts(
      :stderr,
      "The tests need a worker: #{reason}\nOr set BRIDGE_PYTHON to a Python with it."
    )

    System.halt(1)
end

Application.put_env(:dspex_bridge, :json, SmallJSON)
# Tests with the tag `port` need workers that the bridge has started.
exclude = if Workers.transport() == :socket, do: [:port], else: []
ExUnit.start(capture_log: true, assert_receive_timeout: 10_000, exclude: exclude)
ExUnit.after_suite(fn _ -> Clusters.stop() end)
