"""The keys of every scheduler of diffusers 0.42.1.

Whoever adds to the list says in `fm_diffusers.scheduling.keys` what the new one means.
"""

GROUPS = {
    "TABLE": """num_train_timesteps beta_start beta_end beta_schedule trained_betas
        prediction_type timestep_spacing steps_offset""",
    "FLOW_MATCH": """num_train_timesteps shift use_dynamic_shifting time_shift_type base_shift
        max_shift base_image_seq_len max_image_seq_len invert_sigmas shift_terminal
        use_karras_sigmas use_exponential_sigmas use_beta_sigmas""",
    "RESPACED": "use_karras_sigmas use_exponential_sigmas use_beta_sigmas",
    "THRESHOLD": "thresholding dynamic_thresholding_ratio sample_max_value",
    "CLIP": "clip_sample clip_sample_range",
    "FLOW": "use_flow_sigmas flow_shift",
    "DYNAMIC": "use_dynamic_shifting time_shift_type",
    "SOLVER": "solver_order algorithm_type solver_type lower_order_final",
}
KEYS = {
    "Amused": "mask_token_id masking_schedule",
    "BlockRefinement": "block_length editing_threshold minimal_topk num_inference_steps threshold",
    "CMStochasticIterative": """
        clip_denoised num_train_timesteps rho s_noise sigma_data sigma_max sigma_min""",
    "CogVideoXDDIM": """
        TABLE CLIP rescale_betas_zero_snr sample_max_value set_alpha_to_one snr_shift_scale""",
    "CogVideoXDPM": """
        TABLE CLIP rescale_betas_zero_snr sample_max_value set_alpha_to_one snr_shift_scale""",
    "ConsistencyDecoder": "num_train_timesteps sigma_data",
    "CosineDPMSolverMultistep": """
        euler_at_final final_sigmas_type lower_order_final num_train_timesteps prediction_type
        rho sigma_data sigma_max sigma_min sigma_schedule solver_order solver_type""",
    "DDIMInverse": "TABLE CLIP rescale_betas_zero_snr set_alpha_to_one",
    "DDIMParallel": "TABLE THRESHOLD CLIP rescale_betas_zero_snr set_alpha_to_one",
    "DDIM": "TABLE THRESHOLD CLIP rescale_betas_zero_snr set_alpha_to_one",
    "DDPMParallel": "TABLE THRESHOLD CLIP rescale_betas_zero_snr variance_type",
    "DDPM": "TABLE THRESHOLD CLIP rescale_betas_zero_snr variance_type",
    "DDPMWuerstchen": "s scaler",
    "DEISMultistep": "TABLE RESPACED THRESHOLD FLOW DYNAMIC SOLVER",
    "DPMSolverMultistepInverse": """
        TABLE RESPACED THRESHOLD FLOW SOLVER euler_at_final lambda_min_clipped variance_type""",
    "DPMSolverMultistep": """
        TABLE RESPACED THRESHOLD FLOW DYNAMIC SOLVER euler_at_final final_sigmas_type
        lambda_min_clipped rescale_betas_zero_snr use_lu_lambdas variance_type""",
    "DPMSolverSDE": "TABLE RESPACED noise_sampler_seed",
    "DPMSolverSinglestep": """
        RESPACED THRESHOLD FLOW DYNAMIC SOLVER beta_end beta_schedule beta_start
        final_sigmas_type lambda_min_clipped num_train_timesteps prediction_type trained_betas
        variance_type""",
    "DiscreteDDIM": """
        corrector_k corrector_selection corrector_selection_tau corrector_steps
        num_inference_steps""",
    "EDMDPMSolverMultistep": """
        THRESHOLD SOLVER euler_at_final final_sigmas_type num_train_timesteps prediction_type
        rho sigma_data sigma_max sigma_min sigma_schedule""",
    "EDMEuler": """
        final_sigmas_type num_train_timesteps prediction_type rho sigma_data sigma_max
        sigma_min sigma_schedule""",
    "EntropyBound": "entropy_bound num_inference_steps t_max t_min",
    "EulerAncestralDiscrete": "TABLE rescale_betas_zero_snr",
    "EulerDiscrete": """
        TABLE RESPACED final_sigmas_type interpolation_type rescale_betas_zero_snr sigma_max
        sigma_min timestep_type""",
    "FlowMapEulerDiscrete": "num_train_timesteps shift",
    "FlowMatchEulerDiscrete": "FLOW_MATCH stochastic_sampling",
    "FlowMatchHeunDiscrete": "num_train_timesteps shift",
    "FlowMatchLCM": "FLOW_MATCH scale_factors upscale_mode",
    "HeliosDMD": """
        DYNAMIC gamma num_train_timesteps prediction_type shift stage_range stages
        use_flow_sigmas""",
    "Helios": """
        DYNAMIC disable_corrector gamma lower_order_final num_train_timesteps predict_x0
        prediction_type scheduler_type shift solver_order solver_p solver_type stage_range
        stages thresholding use_flow_sigmas""",
    "HeunDiscrete": "TABLE RESPACED CLIP",
    "IPNDM": "num_train_timesteps trained_betas",
    "KDPM2AncestralDiscrete": "TABLE RESPACED",
    "KDPM2Discrete": "TABLE RESPACED",
    "KarrasVe": "s_churn s_max s_min s_noise sigma_max sigma_min",
    "LCM": """
        TABLE THRESHOLD CLIP original_inference_steps rescale_betas_zero_snr set_alpha_to_one
        timestep_scaling""",
    "LMSDiscrete": "TABLE RESPACED",
    "LTXEulerAncestralRF": "eta num_train_timesteps s_noise",
    "MiniMaxH3": "shift",
    "PNDM": "TABLE set_alpha_to_one skip_prk_steps",
    "Piflow": "eps final_step_size_scale n_grid num_policy_substeps num_train_timesteps shift",
    "RFD4Proteina": """
        noise_mode schedule_mode t_lim_ode t_lim_ode_below tail_step_multiplier tail_steps
        tsr_k tsr_sigma""",
    "RePaint": """
        beta_end beta_schedule beta_start clip_sample eta num_train_timesteps trained_betas""",
    "SASolver": """
        TABLE RESPACED THRESHOLD FLOW algorithm_type corrector_order lambda_min_clipped
        lower_order_final predictor_order tau_func variance_type""",
    "SCM": "num_train_timesteps prediction_type sigma_data",
    "ScoreSdeVe": "correct_steps num_train_timesteps sampling_eps sigma_max sigma_min snr",
    "ScoreSdeVp": "beta_max beta_min num_train_timesteps sampling_eps",
    "TCD": """
        TABLE THRESHOLD CLIP original_inference_steps rescale_betas_zero_snr set_alpha_to_one
        timestep_scaling""",
    "UnCLIP": "CLIP beta_schedule num_train_timesteps prediction_type variance_type",
    "UniPCMultistep": """
        TABLE RESPACED THRESHOLD FLOW DYNAMIC disable_corrector final_sigmas_type
        lower_order_final predict_x0 rescale_betas_zero_snr shift_terminal sigma_max sigma_min
        solver_order solver_p solver_type""",
    "VQDiffusion": """
        alpha_cum_end alpha_cum_start gamma_cum_end gamma_cum_start num_train_timesteps
        num_vec_classes""",
}


def keys_of(name):
    return {key for word in KEYS[name].split() for key in GROUPS.get(word, word).split()}
