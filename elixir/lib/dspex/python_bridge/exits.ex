defmodule DSPex.PythonBridge.Exits do
  @moduledoc """
  Describes what ended code of the application, a tool or a setup, without its arguments: those of a
  call that failed may hold secrets, and go into logs and errors.
  """

  alias DSPex.PythonBridge.Text

  @doc "Describes it in one line."
  @spec line(:error | :exit | :throw, term(), Exception.stacktrace()) :: String.t()
  def line(:error, {:badfun, function}, _stacktrace) when is_function(function) do
    replaced(function)
  end

  def line(:error, %BadFunctionError{term: function}, _stacktrace) when is_function(function) do
    replaced(function)
  end

  def line(:error, reason, stacktrace) do
    exception = Exception.normalize(:error, reason, stacktrace)

    case exception |> message() |> Text.opening() do
      "" -> inspect(exception.__struct__)
      line -> line
    end
  end

  def line(:exit, reason, _stacktrace), do: Text.line("exit: #{exit_reason(reason)}")
  def line(:throw, value, _stacktrace), do: Text.line("throw: #{safe(value)}")

  @doc "Returns the stacktrace with arities in place of arguments."
  @spec without_arguments(Exception.stacktrace()) :: Exception.stacktrace()
  def without_arguments(stacktrace) do
    for entry <- stacktrace do
      case entry do
        {module, function, arguments, location} when is_list(arguments) ->
          {module, function, length(arguments), location}

        {function, arguments, location} when is_list(arguments) ->
          {function, length(arguments), location}

        entry ->
          entry
      end
    end
  end

  # What calls a function whose module was loaded twice since it was made.
  defp replaced(function) do
    {:module, module} = Function.info(function, :module)

    "the code of a function is gone: #{inspect(module)} was recompiled since the function was " <>
      "made. Give &Module.function/1, which always means the code of now"
  end

  # That of a call of another process: what it was called with is not shown.
  defp exit_reason({reason, {module, function, arguments}})
       when is_atom(module) and is_atom(function) and is_list(arguments) do
    "#{exit_reason(reason)} in #{inspect(module)}.#{function}/#{length(arguments)}"
  end

  # That of a process that ended with an error.
  defp exit_reason({reason, [{_, _, _, _} | _] = stacktrace}) do
    line(:error, reason, stacktrace)
  end

  defp exit_reason(reason), do: safe(reason)

  # Its own message shows the whole map.
  defp message(%KeyError{key: key}), do: "key #{inspect(key)} not found"

  # `message/1` of an exception, and `inspect` of a struct, are code of the application too.
  defp message(exception) do
    Exception.message(exception)
  catch
    _kind, _reason -> inspect(exception.__struct__)
  end

  defp safe(term) do
    inspect(term, limit: 10, printable_limit: 200)
  catch
    _kind, _reason -> "a term that cannot be shown"
  end
end
