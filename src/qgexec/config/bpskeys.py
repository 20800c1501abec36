"""Names of BPS's own keys that mean nothing here: nobody is warned of them."""

from __future__ import annotations

__all__ = ["BATCH_KEYS"]

_BY_PURPOSE = {
    "sections": """
        payload pipetask site cloud customJob executionButler ordering
        bps_defined bps_cmdline parsl provisioning profile attrs current
    """,
    "what is run, on which data, under which name": """
        pipelineYaml qgraphFile runQgraphFile qgraphId qgraphNodeId inputQgraphFile outputQgraphFile
        operator project campaign payloadName butlerConfig inCollection dataQuery output outputRun
        runInit timestamp
    """,
    "commands": """
        createQuantumGraph runQuantumCommand updateQuantumGraph pipetaskInit pipetaskInput
        pipetaskOutput pipetaskDataQuery extraQgraphOptions extraUpdateQgraphOptions extraInitOptions
        extraAggregateOptions defaultPreCmdOpts qgraphPreCmdOpts initPreCmdOpts runPreCmdOpts
        updateQgraphPreCmdOpts finalPreCmdOpts preCmdline postCmdline useLazyCommands command1 command2
        command3 command4 executable arguments inputs outputs bpsMakeCommand
    """,
    "files and names": """
        submitPath submitRoot subDirTemplate templateDataId qgraphFileTemplate uniqProcName
        whenSaveJobQgraph bpsUseShared useBpsShared fileDistributionEndPoint
        fileDistributionEndPointDefault makeIdLink idLinkPath saveDot saveGenericWorkflow
        saveClusteredQgraph validateClusteredQgraph overwriteJobFiles workflowName workflowPath
    """,
    "the stages of bps submit in batch jobs": """
        bpsBatchSubmission bpsPreCommandOpts buildQuantumGraph preparePayloadWorkflow bpsUseRunTempSpace
        jobCommand
    """,
    "the service of BPS in qgexec.bps": """
        qgexecModel qgexecProcesses qgexecWait runWmsSubmissionChecks
    """,
    "jobs, sites and queues": """
        wmsServiceClass wmsConfig wmsAttemptNum computeCloud computingCloud priority
        category mailTo whenToMail concurrencyLimit preemptible nodeset
        requestDisk executeMachinesPattern releaseExpr abortOnValue abortReturnValue
    """,
    "HTCondor": """
        provisionResources provisioningNodeCount provisioningMaxWallTime provisioningMaxIdleTime
        provisioningCheckInterval provisioningQueue provisioningAccountingUser provisioningExtraOptions
        provisioningPlatform provisioningScript provisioningScriptConfig provisioningScriptConfigPath
    """,
    "PanDA": """
        iddsServer vo remoteBuild prodSourceLabel placeholderParams submitSideResolvedParams
        maxCopyWorkers maxJobsPerTask maxPayloadsPerPandaJob maxRequestLength maxWmsJobWalltime
        enableEventService enableJobNameMap enableQnodeMap payloadCommand payloadFolder runnerCommand
        jobCleanup jobContainer jobInitDir jobLogDir dockerImageLocation setupLSSTEnv executionButlerDir
        s3EndpointUrl taskType monitorEnable monitorFilename monitorInterval
    """,
}

BATCH_KEYS = frozenset(name for names in _BY_PURPOSE.values() for name in names.split())
"""Keys of ctrl_bps 30 and of its plug-ins for HTCondor, PanDA, Parsl and qgexec, in any section."""
